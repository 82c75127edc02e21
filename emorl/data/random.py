"""Random numbers that are a pure function of a counter, the same on every device.

The finaliser and the odd constants are those of SplitMix64 (Steele, Lea and Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014). Tensors are int64 and wrap modulo 2**64,
so nothing depends on the device, on the batch, or on what was drawn before.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

SPLITS = ("train", "val", "test")
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shift(bits: Tensor, count: int) -> Tensor:
    """Logical right shift; torch's own copies the sign bit."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of int64."""
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)


@overload
def _signed(value: int) -> int: ...
@overload
def _signed(value: Tensor) -> Tensor: ...
def _signed(value: int | Tensor) -> int | Tensor:
    """A Python integer modulo 2**64 as the int64 with the same bits; tensors wrap by themselves."""
    if isinstance(value, int):
        return (value + 2**63) % 2**64 - 2**63
    return value


def fold(state: Tensor, counter: int | Tensor) -> Tensor:
    """The state that follows from `state` and `counter` (int64, broadcast against each other).

    For one state, different counters give different results.
    """
    return _mix(state + _signed(counter * _GAMMA))


def stream(index: Tensor, *, split: str, seed: int) -> Tensor:
    """One random state for each index, int64 of the same shape.

    Within one seed the splits never share a state: (split, index) is a single counter.

    Args:
        index: int64, 0 to 2**31 - 1.
        split: "train", "val" or "test".
        seed: any integer; taken modulo 2**64.

    Raises:
        ValueError: if the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    key = _mix(index.new_full((), _signed(seed)))
    return fold(key, index + (SPLITS.index(split) << 32))


def below(state: Tensor, bound: int | Tensor) -> Tensor:
    """Integers in [0, bound) from random states; `bound` below 2**31 (bias below bound / 2**31)."""
    return (_shift(state, 33) * bound) >> 31


def uniform(state: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) from random states, float64, the same bits on every device."""
    return _shift(state, 11).double() * 2.0**-53


def normal(state: Tensor) -> Tensor:
    """Standard normal numbers from random states, float64, of at most 8.3 standard deviations.

    The same on every device up to rounding.
    """
    uniform = (_shift(state, 12).double() + 0.5) * 2.0**-52  # exact, never 0 or 1
    return torch.special.ndtri(uniform)
