"""Sweeps over numbers of refinement steps and slots."""

from __future__ import annotations

import math

import pytest
from training_fakes import FakeImages, FakeModel

from emorl.cli.arguments import Parser, sweep_of
from emorl.evaluation import evaluate, sweep, sweeps
from emorl.models import MONet, MONetConfig, SlotMLP, SlotMLPConfig


def test_each_point_is_an_evaluation():
    model, images = FakeModel(), FakeImages()
    found = sweep(model, images, "refinement_steps", [2, 0, 1], images=6, samples=2, seed=3)
    assert (found["sweep"], found["own"]) == ("refinement_steps", 1)
    assert [point["value"] for point in found["points"]] == [0, 1, 2]
    for point in found["points"]:
        steps = point["value"]
        alone = evaluate(model, images, images=6, samples=2, seed=3, refinement_steps=steps)
        assert point == {"value": steps, "metrics": alone["metrics"], "seeds": alone["seeds"]}
    assert found["images"] == alone["images"] == 6
    assert found["notes"] == alone["notes"]
    assert "metrics" not in found
    assert "refinement_steps" not in found


def test_rows_have_every_column_of_any_number():
    model, images = FakeModel(), FakeImages()
    rows = sweep(model, images, "refinement_steps", [0, 1], images=3)["per_image"]
    assert [*rows][:3] == ["refinement_steps", "seed", "image"]
    assert rows["refinement_steps"] == [0] * 3 + [1] * 3
    assert rows["image"] == [0, 1, 2] * 2
    assert all(math.isnan(x) for x in rows["nll_1"][:3])
    alone = evaluate(model, images, images=3, refinement_steps=1, per_image=True)["per_image"]
    assert rows["nll_1"][3:] == alone["nll_1"]


@pytest.mark.parametrize(
    ("parameter", "values", "message"),
    [
        ("iterations", [1, 2], "expected one of refinement_steps, num_slots, got iterations"),
        ("num_slots", [2, 2], r"two or more numbers of 1 or more, got \[2\]"),
        ("num_slots", [0, 2], r"of 1 or more, got \[0, 2\]"),
        ("refinement_steps", [-1, 2], r"of 0 or more, got \[-1, 2\]"),
        ("num_slots", [2, 99_999_999_999], "slots of 8x8 pixels would take"),
        ("num_slots", [2, 2.5], "num_slots: expected a whole number, got 2.5"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_the_work(monkeypatch, parameter, values, message):
    monkeypatch.setattr(sweeps, "evaluate", lambda *args, **options: pytest.fail("it has begun"))
    with pytest.raises(ValueError, match=message):
        sweep(FakeModel(), FakeImages(), parameter, values)


def test_models_without_such_a_number_say_so():
    monet = MONet(MONetConfig(image_size=(64, 64), num_slots=2))
    with pytest.raises(ValueError, match=r"^sweep: monet has no refinement steps$"):
        sweep(monet, FakeImages(), "refinement_steps", [0, 1])
    mlp = SlotMLP(SlotMLPConfig(image_size=(8, 8), num_slots=2, decoder="small"))
    with pytest.raises(ValueError, match=r"^sweep: this slot_mlp has 2 slots, fixed"):
        sweep(mlp, FakeImages(), "num_slots", [2, 3])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("refinement-steps=0..3", ("refinement_steps", [0, 1, 2, 3])),
        ("num-slots=9,5,7,5", ("num_slots", [5, 7, 9])),
        ("num-slots=1..100", ("num_slots", [*range(1, 101)])),
    ],
)
def test_a_sweep_is_written_as_a_range_or_a_list(text, expected):
    assert sweep_of(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "num-slots", "num-slots=5", "num-slots=5,5", "num-slots=5..5", "num-slots=6..5",
     "num-slots=1..101", "num-slots=0..999999999", "num_slots=1..3", "iterations=1..3",
     "num-slots=-1..3", "num-slots=1..2,4"],
)  # fmt: skip
def test_any_other_text_is_one_line(text):
    parser = Parser("evaluate", "")
    parser.add_argument("--sweep", type=sweep_of)
    with pytest.raises(ValueError, match=r"--sweep: expected refinement-steps=0\.\.6 or "):
        parser.parse([f"--sweep={text}"])
