"""How many timings fit into a budget of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ENOUGH = 20 * 60.0  # seconds of budget from which on the least is promised


class Item(NamedTuple):
    """Something that can be timed a number of times.

    Attributes:
        name: of the item.
        start: seconds until its first timing: a process, a warm-up.
        each: seconds of a timing.
        least: timings that are promised.
        most: timings that are useful.
    """

    name: str
    start: float
    each: float
    least: int
    most: int

    def cost(self, timings: int) -> float:
        """Seconds of so many timings."""
        return self.start + timings * self.each if timings else 0.0


def plan(items: Sequence[Item], seconds: float) -> dict[str, int]:
    """The number of timings of each item; 0 for what does not fit.

    In rounds, each of which gives one more timing to every item that it still fits, in their
    order: first up to the least of each, then up to the most.
    """
    planned = {item.name: 0 for item in items}
    rounds = range(1, 1 + max((item.most for item in items), default=0))
    wishes = [(n, item) for n in rounds for item in items if n <= item.least]
    wishes += [(n, item) for n in rounds for item in items if item.least < n <= item.most]
    left = seconds
    for n, item in wishes:
        cost = item.cost(n) - item.cost(n - 1)
        if planned[item.name] == n - 1 and cost <= left:
            planned[item.name] = n
            left -= cost
    return planned


def total(items: Sequence[Item], planned: dict[str, int]) -> float:
    """Seconds of planned timings."""
    return sum(item.cost(planned[item.name]) for item in items)


def require_least(items: Sequence[Item], seconds: float, budget: float) -> None:
    """Make sure that a budget that is `ENOUGH` or more is enough for the least of every item.

    Args:
        items: all of them.
        seconds: what is left of the budget.
        budget: the whole of it, in seconds.

    Raises:
        ValueError: if it is not, with what is needed.
    """
    least = total(items, {item.name: item.least for item in items})
    if budget >= ENOUGH and least > seconds:
        minutes = -(-(budget - seconds + least) // 60)
        raise ValueError(
            f"--budget: the least of this suite takes about {minutes:.0f}min here, got "
            f"{budget / 60:.0f}min; take fewer --models or --sizes, or below "
            f"{ENOUGH / 60:.0f}min what fits"
        )
