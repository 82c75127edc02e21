from __future__ import annotations

import pytest

from emorl.training.config import TrainerConfig, check_curriculum
from emorl.training.trainer import learning_rate, objective_arguments


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (1, 4e-8),
        (5_000, 2e-4),
        (10_000, 4e-4),
        (60_000, 4e-4 * 0.5**0.5),
        (110_000, 2e-4),
        (210_000, 1e-4),
    ],
)
def test_released_learning_rate(step, expected):
    rate = learning_rate(TrainerConfig(), step)
    assert rate == pytest.approx(expected, rel=1e-12)


def constant(step, **options):
    settings = {"warmup_steps": 0, "decay_steps": None, "steps": 2 * 10**6, **options}
    return learning_rate(TrainerConfig(learning_rate=0.1, **settings), step)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (1, 0.05), (2, 0.1), (6, 0.1), (7, 0.075), (9, 0.025)]
)
def test_cooldown_falls_to_zero_at_the_end(step, expected):
    rate = constant(step, warmup_steps=2, steps=10, cooldown_steps=4)
    assert rate == pytest.approx(expected, rel=1e-12)


def test_learning_rate_without_warm_up_or_decay():
    rates = [constant(t) for t in (0, 1, 10**6)]
    assert rates == [0.1] * 3


@pytest.mark.parametrize(("step", "steps"), [(0, 3), (99_999, 3), (100_000, 1), (300_000, 1)])
def test_curriculum_changes_at_its_step(step, steps):
    curriculum = {"refinement_steps": [(0, 3), (100_000, 1)], "kl_weight": [(0, 0.5)]}
    assert objective_arguments(curriculum, step) == {"refinement_steps": steps, "kl_weight": 0.5}


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        ({"beta": [(0, 1)]}, "trainer.curriculum.beta: expected one of refinement_steps"),
        ({"kl_weight": []}, "expected .*, got steps \\[\\]"),
        ({"kl_weight": [(5, 1.0)]}, "got steps \\[5\\]"),
        ({"kl_weight": [(0, 1.0), (7, 0.5), (7, 0.2)]}, "got steps \\[0, 7, 7\\]"),
        ({"refinement_steps": [(0, 1.5)]}, "expected a whole number >= 0, got 1.5"),
        ({"kl_weight": [(0, -1.0)]}, "expected a number >= 0, got -1.0"),
    ],
    ids=["name", "empty", "late", "order", "fraction", "negative"],
)
def test_impossible_curricula_are_refused(curriculum, message):
    with pytest.raises(ValueError, match=message):
        check_curriculum(curriculum)
