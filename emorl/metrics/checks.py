"""Checks of what metrics are given."""

from __future__ import annotations

import torch
from torch import Tensor

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def require_label_maps(true: Tensor, predicted: Tensor) -> None:
    """Refuse label maps that differ in shape or device, and labels that are no numbers from 0 on.

    Raises:
        ValueError: with what was expected, and what was given.
    """
    require_tensors(true=true, predicted=predicted)
    if true.shape != predicted.shape or true.dim() < 2:
        raise ValueError(
            "expected true and predicted label maps of one shape [B, ...], "
            f"got {list(true.shape)} and {list(predicted.shape)}"
        )
    for name, labels in (("true", true), ("predicted", predicted)):
        if labels.dtype not in (*_SIGNED, *_UNSIGNED):
            raise ValueError(f"expected integer labels, got {name} labels of {labels.dtype}")
        if labels.dtype in _SIGNED and labels.numel() and (smallest := int(labels.amin())) < 0:
            raise ValueError(f"expected labels >= 0, got {name} label {smallest}")


def require_tensors(**values: Tensor) -> None:
    """Refuse what is no tensor, and two tensors of different devices or without values.

    Raises:
        ValueError: naming the arguments.
    """
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: expected a tensor, got {type(value).__name__}")
    devices = [value.device for value in values.values()]
    if devices[0] != devices[1]:
        names = " and ".join(values)
        raise ValueError(f"{names}: expected one device, got {devices[0]} and {devices[1]}")
    if devices[0].type == "meta":
        raise ValueError(f"{' and '.join(values)}: expected values, got the device meta")
