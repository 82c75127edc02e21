"""What every operator asks of its arguments, whichever backend runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def require_tensors(op: str, tensors: Mapping[str, Any], optional: Sequence[str] = ()) -> None:
    """Raise a ValueError unless all are dense tensors; optional ones may be None."""
    for name, tensor in tensors.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{op}: {name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise ValueError(f"{op}: {name}: expected a dense tensor, got a {kind} one")


def require_floating(
    op: str, tensors: Mapping[str, Tensor | None], allowed: Sequence[torch.dtype] = FLOATING
) -> None:
    """Raise a ValueError unless all have a floating dtype that the operator computes with."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in allowed:
            expected = ", ".join(map(_short, allowed))
            raise ValueError(f"{op}: {name}: expected {expected}, got {_short(tensor.dtype)}")


def require_device(op: str, tensors: Mapping[str, Tensor | None], device: torch.device) -> None:
    """Raise a ValueError unless all are on that device."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{op}: {name}: expected {device}, got {tensor.device}")


def require_dtype(op: str, tensors: Mapping[str, Tensor | None], dtype: torch.dtype) -> None:
    """Raise a ValueError unless all have that dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            raise ValueError(f"{op}: {name}: expected {_short(dtype)}, got {_short(tensor.dtype)}")


def require_flag(op: str, name: str, value: Any) -> None:
    """Raise a ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{op}: {name}: expected True or False, got {value!r}")


def whole_number(op: str, name: str, value: Any, least: int) -> int:
    """An argument that is a whole number of 64 bits; a bool is none.

    Raises:
        ValueError: if it is not, or smaller than `least`.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not least <= int(value) < 2**63:
        raise ValueError(f"{op}: {name}: expected a whole number >= {least}, got {value!r}")
    return value if isinstance(value, int) else int(value)


def number(op: str, name: str, value: Any, *, positive: bool = False) -> float:
    """An argument that is a finite number; a bool is none.

    Raises:
        ValueError: if it is not, or not `positive` where it must be.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value)
    if not is_number or (positive and float(value) <= 0):
        expected = "a number > 0" if positive else "a number"
        raise ValueError(f"{op}: {name}: expected {expected}, got {value!r}")
    return value if isinstance(value, float) else float(value)


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond a float's range
        return False


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
