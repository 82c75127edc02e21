"""Training runs that are killed or interrupted."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from process_testing import processes
from training_fakes import FakeImages, FakeModel

from emorl.runs import checkpoint
from emorl.training.config import GECOConfig, TrainerConfig
from emorl.training.trainer import Trainer

CONFIG = {
    "steps": 60,
    "batch_size": 4,
    "learning_rate": 0.01,
    "warmup_steps": 10,
    "checkpoint_every": 4,
    "keep_checkpoints": 2,
    "log_every": 3,
    "picture_every": 0,
    "device": "cpu",
    "curriculum": {"refinement_steps": [(0, 2), (30, 1)]},
}


def train(run_dir: Path, pause: float = 0.0, workers: int = 0) -> None:
    """A run in a process group of its own; exit code 3 if it was interrupted."""
    os.setpgid(0, 0)
    multiprocessing.set_start_method("fork", force=True)  # quick data loader workers
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if pause:
        patient = FakeModel.objective
        FakeModel.objective = lambda *a, **k: (time.sleep(pause), patient(*a, **k))[1]
    geco = GECOConfig(target_per_dim=0.2, warm_start=5, step_size=1e-3)
    config = TrainerConfig(**CONFIG, geco=geco)
    trainer = Trainer(FakeModel(), FakeImages(), config, run_dir, workers=workers, resume=True)
    raise SystemExit(3 if trainer.run().interrupted else 0)


def start(run_dir: Path, **options) -> multiprocessing.process.BaseProcess:
    process = processes.Process(target=train, args=(run_dir,), kwargs=options)
    process.start()
    return process


def finished(run_dir: Path) -> dict[str, torch.Tensor]:
    place = checkpoint.latest(run_dir)
    assert place is not None
    assert checkpoint.load_state(place)["step"] == CONFIG["steps"]
    return safetensors.torch.load_file(place / "model.safetensors")


def logged_steps(run_dir: Path) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return []


def wait_until(happened: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    process = start(run_dir)
    process.join()
    assert process.exitcode == 0
    return run_dir


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path, undisturbed):
    moments = random.Random(7)
    kills = []
    for _ in range(6):
        process = start(tmp_path, pause=0.01)
        before = max(logged_steps(tmp_path), default=0)
        wait_until(lambda b=before: max(logged_steps(tmp_path), default=0) > b)
        time.sleep(moments.uniform(0.0, 0.08))
        process.kill()
        process.join()
        kills.append(process.exitcode)
        assert max(logged_steps(tmp_path)) < CONFIG["steps"]
    assert kills == [-signal.SIGKILL] * 6
    last = start(tmp_path)
    last.join()
    assert last.exitcode == 0
    resumed = finished(tmp_path)
    for name, value in finished(undisturbed).items():
        assert torch.equal(resumed[name], value), name
    assert logged_steps(tmp_path) == logged_steps(undisturbed) == list(range(3, 61, 3))
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"step-00000056", "step-00000060"}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_finishes_the_step_and_saves(tmp_path, undisturbed, number, workers):
    """The signal reaches the workers as well, as Ctrl-C on a terminal does."""
    process = start(tmp_path, pause=0.01, workers=workers)
    wait_until(lambda: logged_steps(tmp_path))
    os.killpg(process.pid, number)
    process.join()
    assert process.exitcode == 3
    place = checkpoint.latest(tmp_path)
    step = checkpoint.load_state(place)["step"]
    assert max(logged_steps(tmp_path)) <= step < CONFIG["steps"]
    assert step - max(logged_steps(tmp_path)) < CONFIG["log_every"], "saved where it stopped"
    last = start(tmp_path)
    last.join()
    resumed = finished(tmp_path)
    for name, value in finished(undisturbed).items():
        assert torch.equal(resumed[name], value), name
