"""GECO's penalty, its update and its warning."""

from __future__ import annotations

import math

import pytest
import torch

from emorl.training import GECO


def test_penalty_has_the_average_as_value_and_the_batch_as_gradient() -> None:
    geco = GECO(-1.0, moving_average=-80.0, raw_multiplier=0.9)
    nll = torch.tensor(-50.0, requires_grad=True)
    penalty = geco.penalty(nll, dims=100)
    penalty.backward()
    multiplier = math.log(1 + math.exp(0.9))
    assert float(penalty.detach()) == pytest.approx(80 * multiplier)
    assert nll.grad is not None
    assert float(nll.grad) == pytest.approx(multiplier)


def test_multiplier_is_stable_for_any_raw_value() -> None:
    for raw in (0.55, 30.0, 2000.0):
        expected = float(torch.nn.functional.softplus(torch.tensor(raw, dtype=torch.float64)))
        assert GECO(0.0, raw_multiplier=raw).multiplier == pytest.approx(expected, rel=1e-12)


def test_update_follows_the_released_schedule() -> None:
    geco = GECO(-1.0, step_size=1e-3)
    geco.update(-90.0, 100, step=999)
    assert (geco.moving_average, geco.raw_multiplier) == (0.0, 0.55)
    geco.update(-90.0, 100, step=1000)
    assert (geco.moving_average, geco.raw_multiplier) == (-10.0, 0.55)
    geco.update(-80.0, 100, step=1001)
    assert geco.moving_average == pytest.approx(0.99 * -10 + 0.01 * -20)
    assert geco.raw_multiplier == pytest.approx(0.55 + 1e-3 * 10.1)


def test_multiplier_falls_faster_with_acceleration_and_stops_at_its_floor() -> None:
    plain = GECO(0.0, moving_average=10.0, raw_multiplier=2.0, step_size=1e-2, decay=1.0)
    fast = GECO(
        0.0, moving_average=10.0, raw_multiplier=2.0, step_size=1e-2, decay=1.0, acceleration=5.0
    )
    plain.update(0.0, 1, step=1001)
    fast.update(0.0, 1, step=1001)
    assert plain.raw_multiplier == pytest.approx(1.9)
    assert fast.raw_multiplier == pytest.approx(1.5)
    for _ in range(5):
        fast.update(0.0, 1, step=1001)
    assert fast.raw_multiplier == GECO.FLOOR


def test_unreachable_target_is_named() -> None:
    warning = GECO(-1.224).unreachable(sigma=0.3)
    assert warning is not None
    assert "-1.2240" in warning
    assert "-1.2040" in warning
    assert GECO(-2.206).unreachable(sigma=0.1) is None


def test_state_survives() -> None:
    geco = GECO(-1.0)
    geco.update(3.0, 10, step=1000)
    restored = GECO(-1.0)
    restored.load_state_dict(geco.state_dict())
    assert restored.state_dict() == geco.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_per_dim": math.nan}, "target_per_dim: expected a number, got nan"),
        ({"target_per_dim": "x"}, "target_per_dim: expected a number, got x"),
        ({"raw_multiplier": math.inf}, "raw_multiplier: expected a number, got inf"),
        ({"decay": 2.0}, "decay: expected a number from 0 to 1, got 2.0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GECO(**{"target_per_dim": -1.0, **settings})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("warm_start", 2.5, "expected a whole number, got 2.5"),
        ("warm_start", -3, "expected at least 0, got -3"),
        ("step_size", -1, "expected at least 0, got -1"),
        ("acceleration", -1, "expected at least 0, got -1"),
        ("raw_multiplier", -5, "expected at least 0.55, got -5"),
        ("moving_average", float("inf"), "expected a number, got inf"),
        ("decay", 1.5, "expected a number from 0 to 1, got 1.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(option: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^geco\.{option}: {message}$"):
        GECO(-1.0, **{option: value})
