"""How a training step's time grows along an axis, fitted to what a record has of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emorl.bench.step.build import TRAINING
from emorl.bench.step.variants import RELEASED
from emorl.bench.suite import Record

LEAST = 3  # points of a fit: fewer lie on any curve
SYMBOLS = {"slots": "K", "size": "side", "steps": "I", "batch": "batch"}


class Power(NamedTuple):
    """seconds = factor * x^exponent."""

    factor: float
    exponent: float

    def at(self, x: float) -> float:
        """Seconds at x > 0."""
        return self.factor * x**self.exponent

    def describe(self, symbol: str) -> str:
        """The law in a few characters."""
        return f"{symbol}^{self.exponent:.2f}"


class Line(NamedTuple):
    """seconds = start + each * x."""

    start: float
    each: float

    def at(self, x: float) -> float:
        """Seconds at x."""
        return self.start + self.each * x

    def describe(self, symbol: str) -> str:
        """The law in a few characters, with the share of the start that each adds."""
        share = f" ({self.each / self.start:+.0%} each)" if self.start > 0 else ""
        scale, unit = (1, "s") if self.start >= 1 else (1000, "ms")
        start, each = (f"{scale * seconds:.3g} {unit}" for seconds in self)
        return f"{start} + {each} {symbol}{share}"


Law = Power | Line


def power_law(x: Sequence[float], seconds: Sequence[float]) -> Power:
    """Least squares of the logarithms."""
    exponent, factor = np.polyfit(np.log(x), np.log(seconds), 1).tolist()
    return Power(float(np.exp(factor)), exponent)


def line(x: Sequence[float], seconds: Sequence[float]) -> Line:
    """Least squares of the seconds."""
    each, start = np.polyfit(x, seconds, 1).tolist()
    return Line(start, each)


def law(axis: str, points: Sequence[tuple[int, float]]) -> Law | None:
    """A line in I, a power of all else; None for fewer than `LEAST` points."""
    if len(points) < LEAST:
        return None
    x, seconds = zip(*points, strict=True)
    return line(x, seconds) if axis == "steps" else power_law(x, seconds)


def farthest(fitted: Law, points: Sequence[tuple[int, float]]) -> float:
    """By how much a point is off the law at most, as a share of the law."""
    return max(abs(seconds / fitted.at(x) - 1) for x, seconds in points)


def points_of(
    record: Record, model: str, released: bool, axis: str, part: str = TRAINING
) -> list[tuple[int, float]]:
    """The places of an axis and the medians there, in seconds, where all else is as in the base.

    None of an axis that the model does not have.

    Args:
        record: of the suite.
        model: its key.
        released: whether of the released code, else of ours in its usual variant.
        axis: a field of a case.
        part: of a case.
    """
    base = record["bases"][model]
    if axis not in base:
        return []
    fixed = {name: value for name, value in base.items() if name != axis}
    fixed |= {"model": model, "config": record["base_config"], "part": part}
    found = {
        entry[axis]: entry["parts"][part]["median"]
        for entry in record["cases"]
        if entry["variant"] == (RELEASED if released else entry["usual"])
        and all(entry[name] == value for name, value in fixed.items())
    }
    return sorted(found.items())
