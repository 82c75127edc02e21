"""How many timings fit into a budget."""

from __future__ import annotations

import pytest

from emorl.bench.budget import ENOUGH, Item, plan, require_least, total

ITEMS = [
    Item("small", start=2.0, each=1.0, least=3, most=9),  # 5 s at least
    Item("large", start=5.0, each=5.0, least=1, most=9),  # 10 s at least
    Item("extra", start=4.0, each=0.0, least=0, most=1),
]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (2.9, {"small": 0, "large": 0, "extra": 0}),
        (3.0, {"small": 1, "large": 0, "extra": 0}),
        (12.9, {"small": 6, "large": 0, "extra": 1}),  # after "small" no "large" fits
        (15.0, {"small": 3, "large": 1, "extra": 0}),
        (19.0, {"small": 3, "large": 1, "extra": 1}),
        (25.0, {"small": 4, "large": 2, "extra": 1}),
        (10**6, {"small": 9, "large": 9, "extra": 1}),
    ],
)
def test_the_least_of_all_is_planned_before_more_of_any(
    seconds: float, expected: dict[str, int]
) -> None:
    planned = plan(ITEMS, seconds)
    assert planned == expected
    assert total(ITEMS, planned) <= seconds


def test_a_full_budget_that_is_too_small_is_an_error_and_a_small_one_is_not() -> None:
    require_least(ITEMS, 15.0, ENOUGH)
    with pytest.raises(ValueError, match=r"--budget: the least .* takes about 21min here, got 20"):
        require_least(ITEMS, 14.9, ENOUGH)
    require_least(ITEMS, 1.0, ENOUGH - 1)
