"""Devices that are asked for."""

from __future__ import annotations

import torch

from emorl.fields import shown


def device_there(asked: torch.device | str) -> torch.device:
    """The device that is asked for.

    Raises:
        ValueError: if it is none, not there, or without memory.
    """
    if not isinstance(asked, torch.device | str):
        raise ValueError(f"device: expected a torch.device or its name, got {shown(asked)}")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"device: expected one that is there, got {asked}: {reason}") from None
    if device.type == "meta":
        raise ValueError("device: expected one with memory, got meta")
    return device
