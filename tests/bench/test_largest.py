"""The search for the largest batch."""

from __future__ import annotations

import pytest

from emorl.bench import largest


def test_straight_line() -> None:
    peaks = {1: 30, 2: 50, 4: 90}
    assert largest.line_through(peaks) == pytest.approx((10, 20))
    assert largest.on_line(peaks, 1009) == 49
    assert largest.on_line(peaks, 1011) == 50
    assert largest.on_line(peaks, 5) == 0
    assert largest.on_line({1: 30, 2: 30}, 100) is None
    noisy = {1: 31, 2: 49, 4: 90}
    assert largest.line_through(noisy)[1] == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 32])
def test_the_line_has_three_points(batch: int) -> None:
    assert len({batch, *largest.others_than(batch)}) == 3


@pytest.mark.parametrize("guess", [1, 5, 6, 7, 100])
@pytest.mark.parametrize("room", [0, 1, 6, 99])
def test_bisection(room: int, guess: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= room

    assert largest.bisect(fits, guess) == room
    assert min(tried) >= 1
    assert len(tried) == len({*tried})
