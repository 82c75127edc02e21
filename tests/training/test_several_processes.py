"""Runs and evaluations that are spread over processes; gloo, on the CPU.

All of them compute in float64: processes add up in another order than one, and may have another
number of threads each, which in float32 would show.
"""

from __future__ import annotations

import json
import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import safetensors.torch
import torch
from process_testing import run_ranks

from emorl.cli import main
from emorl.data import open_dataset
from emorl.models import EfficientMORL, EfficientMORLConfig
from emorl.runs import checkpoint
from emorl.training.config import GECOConfig, TrainerConfig
from emorl.training.trainer import Trainer

NETWORK = {
    "image_size": (12, 12),
    "num_slots": 3,
    "slot_dim": 8,
    "stochastic_layers": 2,
    "encoder_channels": 8,
    "encoder_layers": 2,
    "decoder": "small",
    "decoder_channels": 8,
    "init_gain": 1.0,
}
STEPS = 12
DEVICE = "cpu" if torch.accelerator.is_available() else "auto"


def train(run_dir: Path, changes: dict) -> None:
    """A run that refines twice, once and not at all; each process leaves its GECO's state."""
    config = {
        "steps": STEPS,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "decay_steps": None,
        "curriculum": {"refinement_steps": [(0, 2), (5, 1), (9, 0)]},
        "geco": GECOConfig(target_per_dim=-0.5, warm_start=3, step_size=1e-4),
        "log_every": 1,
        "picture_every": 0,
        "device": DEVICE,
    }
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    trainer = Trainer(
        EfficientMORL(EfficientMORLConfig(**NETWORK)),
        open_dataset("tetrominoes", size=12),
        TrainerConfig(**{**config, **changes}),
        run_dir,
        resume=True,
    )
    trainer.run()
    (run_dir / f"geco-{os.environ.get('RANK', 0)}.json").write_text(
        json.dumps(trainer.geco.state_dict())
    )


def run(world: int, run_dir: Path, **changes) -> Path:
    run_ranks(world, train, run_dir, changes)
    return run_dir


def rows(run_dir: Path) -> list[dict]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "images_per_second"} for x in lines]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(checkpoint.latest(run_dir) / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    return run(1, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    return run(2, tmp_path_factory.mktemp("pair"))


def assert_same_curves(run_dir: Path, expected_dir: Path) -> None:
    """Up to the rounding of the rows, which are float32: means of rounded shares.

    GECO adds up the rows' NLL, one a step, so its multiplier may be off by all their roundings.
    """
    rel = STEPS * torch.finfo(torch.float32).eps
    for ours, expected in zip(rows(run_dir), rows(expected_dir), strict=True):
        assert ours == pytest.approx(expected, rel=rel, abs=0), ours["step"]


def test_two_processes_have_the_curves_of_one(pair, alone):
    assert_same_curves(pair, alone)


@pytest.mark.parametrize("world", [1, 2])
def test_accumulated_parts_have_the_curves_of_one(tmp_path, alone, world):
    assert_same_curves(run(world, tmp_path, accumulation=2), alone)


def test_geco_agrees_in_all_processes(pair):
    states = [json.loads((pair / f"geco-{rank}.json").read_text()) for rank in range(2)]
    assert states[0] == states[1]
    assert states[0]["raw_multiplier"] > 0.55, "it has moved"


def test_two_processes_resume_with_the_same_bits(tmp_path, pair):
    run(2, tmp_path, steps=7)
    run(2, tmp_path)
    assert rows(tmp_path) == rows(pair)
    resumed = weights(tmp_path)
    for name, value in weights(pair).items():
        assert torch.equal(resumed[name], value), name


def test_a_run_goes_on_in_another_number_of_processes(tmp_path, alone):
    run(2, tmp_path, steps=7)
    assert_same_curves(run(1, tmp_path), alone)


def resume_apart(run_dir: Path) -> None:
    own = run_dir / os.environ["RANK"]  # as folders of two machines
    with pytest.raises(ValueError, match=r"folder that all processes see, got .* \[5, 0\]"):
        train(own, {})


def test_processes_that_see_other_folders_do_not_resume(tmp_path):
    run(1, tmp_path / "0", steps=5)
    run_ranks(2, resume_apart, tmp_path)


def evaluate(run_dir: Path, out: Path, batch_size: int, images: int) -> None:
    rank = os.environ.get("RANK", "0")
    options = {"--images": images, "--batch-size": batch_size, "--device": DEVICE, "--json": out}
    torch.set_default_dtype(torch.float64)
    with (out.parent / f"printed-{rank}").open("w") as printed, redirect_stdout(printed):
        line = ["evaluate", str(run_dir), "--data", "tetrominoes", "--size", "12"]
        code = main([*line, *(str(x) for option in options.items() for x in option)])
    assert code == 0


@pytest.mark.parametrize(
    ("images", "batch_size"), [(7, 2), (9, 2), (8, 2), (3, 4)], ids=lambda n: str(n)
)
def test_processes_measure_what_one_measures(tmp_path, alone, images, batch_size):
    """Also where a process has fewer batches, a smaller last one, or none."""
    place = checkpoint.latest(alone)
    results = []
    for world in (1, 2):
        out = tmp_path / str(world) / "result.json"
        out.parent.mkdir()
        run_ranks(world, evaluate, place, out, batch_size, images)
        results.append(json.loads(out.read_text()))
    one, two = (result.pop("metrics") for result in results)
    assert results[1] == results[0]
    assert two == {name: pytest.approx(summary, rel=1e-9) for name, summary in one.items()}
    assert one["mse"]["count"] == images
    printed = [(tmp_path / "2" / f"printed-{rank}").read_text() for rank in range(2)]
    assert "fg_ari" in printed[0]
    assert printed[1] == ""
