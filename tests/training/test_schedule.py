from __future__ import annotations

import pytest

from emorl.cli import main
from emorl.models import MODELS
from emorl.training.config import TrainerConfig, check_curriculum
from emorl.training.curriculum import require_possible
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


@pytest.mark.parametrize(("step", "expected"), [(1, 0.05), (2, 0.1), (6, 0.05), (9, 0.0125)])
def test_a_cooldown_longer_than_the_run_begins_after_the_warm_up(step, expected):
    rate = constant(step, warmup_steps=2, steps=10, cooldown_steps=10_000)
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
        ({"num_slots": [(0, 4), (3, 0)]}, "expected a whole number >= 1, got 0 from step 3 on"),
    ],
    ids=["name", "empty", "late", "order", "fraction", "negative", "none"],
)
def test_impossible_curricula_are_refused(curriculum, message):
    with pytest.raises(ValueError, match=message):
        check_curriculum(curriculum)


@pytest.mark.parametrize(
    ("model", "curriculum", "message"),
    [
        (
            "efficient_morl",
            {"num_slots": [(0, 4), (3, 10**13)]},
            r"num_slots: \[3, 10+\]: 10+ slots",
        ),
        (
            "efficient_morl",
            {"refinement_steps": [(0, 1), (3, 10**12)]},
            "refinement_steps: .3, 10+.: ",
        ),
        ("slot_attention", {"refinement_steps": [(0, 1)]}, "has no refinement steps"),
        (
            "slot_attention",
            {"kl_weight": [(0, 1), (2, 2)]},
            r"kl_weight: \[2, 2\]: slot_attention has",
        ),
        ("slot_mlp", {"num_slots": [(0, 4), (2, 5)]}, r"num_slots: \[2, 5\]: fixed by the network"),
    ],
)
def test_what_a_model_does_not_take_is_refused_before_training(model, curriculum, message):
    kind = MODELS[model]
    made = kind(kind.Config(image_size=(16, 16), num_slots=4))
    with pytest.raises(ValueError, match=message):
        require_possible(curriculum, made, images=2)


def test_endless_refinement_is_refused_without_a_curriculum():
    kind = MODELS["efficient_morl"]
    made = kind(kind.Config(image_size=(16, 16), num_slots=4, refinement_steps=10**12))
    with pytest.raises(ValueError, match=r"network\.refinement_steps: 10+ refinement steps"):
        require_possible({}, made, images=2)


def test_a_training_with_an_impossible_curriculum_ends_before_its_first_step(tmp_path, capsys):
    line = ["train", "--config", "smoke", "--out", str(tmp_path / "run"), "--trainer.steps", "4"]
    assert main([*line, "--trainer.curriculum.num_slots", "[[0,4],[3,10000000000000]]"]) == 2
    assert "trainer.curriculum.num_slots: [3, 10000000000000]: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
