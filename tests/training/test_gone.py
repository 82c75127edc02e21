"""Runs whose terminal, pipe, folder or disk goes away, and two runs in one folder."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pty
import signal
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from process_testing import processes, run_ranks
from training_fakes import FakeImages, FakeModel

from emorl.models import ObjectCentricModel
from emorl.runs import RunFolder, checkpoint
from emorl.training.config import TrainerConfig
from emorl.training.interrupt import StopRequest
from emorl.training.trainer import Trainer

SETTINGS = {
    "batch_size": 4,
    "checkpoint_every": 4,
    "log_every": 1,
    "picture_every": 0,
    "device": "cpu",
}


def trainer(
    folder: Path, steps: int, pause: float = 0.0, workers: int = 0, outlast: bool = False
) -> Trainer:
    """A run whose steps pause; one that is to `outlast` another waits at step 6 for that."""
    torch.manual_seed(0)
    model = FakeModel()
    plain, number = model.objective, count(1)

    def objective(*arguments, **options):
        time.sleep(pause)
        give_up = time.monotonic() + 60
        if outlast and next(number) == 6:
            while not (folder / "refused").exists() and time.monotonic() < give_up:
                time.sleep(0.01)
        return plain(*arguments, **options)

    model.objective = objective
    config = TrainerConfig(steps=steps, **SETTINGS)
    return Trainer(model, FakeImages(), config, folder, workers=workers, resume=True)


def train(folder: Path, options: dict, nohup: bool) -> None:
    """Exit code 3 if the run was interrupted, 2 if it was refused."""
    torch.set_num_threads(1)
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        raise SystemExit(3 if trainer(folder, **options).run().interrupted else 0)
    except ValueError as error:
        (folder / "refused").write_text(str(error))
        raise SystemExit(2) from None


def start(folder: Path, nohup: bool = False, **options):
    process = processes.Process(target=train, args=(folder, options, nohup))
    process.start()
    return process


def rows(folder: Path) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return []


def wait_for_rows(folder: Path, number: int, process) -> None:
    while len(rows(folder)) < number:
        process.join(0.01)
        assert process.is_alive()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_closed_terminal_saves_and_stops(tmp_path, workers):
    process = start(tmp_path, steps=10_000, pause=0.01, workers=workers)
    wait_for_rows(tmp_path, 5, process)
    os.killpg(process.pid, signal.SIGHUP)
    process.join(60)
    assert process.exitcode == 3
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert checkpoint.load_state(newest)["step"] == rows(tmp_path)[-1]


def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path):
    process = start(tmp_path, nohup=True, steps=40, pause=0.01)
    wait_for_rows(tmp_path, 5, process)
    os.killpg(process.pid, signal.SIGHUP)
    process.join(60)
    assert process.exitcode == 0
    assert rows(tmp_path)[-1] == 40


@pytest.fixture
def no_nohup():
    """The tests themselves may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("no_nohup")
def test_signal_handlers_are_put_back():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_run_whose_stderr_is_gone_goes_on(tmp_path, monkeypatch, kind):
    """As after `2>&1 | head`, or with a terminal that was closed under nohup."""
    reading, writing = pty.openpty() if kind == "terminal" else os.pipe()
    stream = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    run = trainer(tmp_path, 12)
    plain, steps = FakeModel.objective, []

    def objective(model: ObjectCentricModel, *arguments, **options):
        steps.append(options["step"])
        if len(steps) == 4:
            os.close(reading)
        return plain(model, *arguments, **options)

    monkeypatch.setattr(FakeModel, "objective", objective)
    result = run.run()
    monkeypatch.undo()
    with contextlib.suppress(OSError):
        stream.close()
    assert (result.step, result.interrupted) == (12, False)
    assert rows(tmp_path) == [*range(1, 13)]


def test_two_runs_in_one_folder(tmp_path):
    first = start(tmp_path, steps=60, outlast=True)
    wait_for_rows(tmp_path, 5, first)
    second = start(tmp_path, steps=60)
    second.join(60)
    assert second.exitcode == 2
    message = (tmp_path / "refused").read_text()
    assert message == f"{tmp_path}: process {first.pid} is training in this folder"
    first.join(60)
    assert first.exitcode == 0
    assert rows(tmp_path) == [*range(1, 61)]


def test_pairs_that_start_together(tmp_path):
    """One of each pair trains, and its run has the same bits as one alone."""
    trainer(tmp_path / "alone", 12).run()
    alone = (checkpoint.latest(tmp_path / "alone") / "model.safetensors").read_bytes()
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        pair = [start(folder, steps=12, outlast=True) for _ in range(2)]
        for process in pair:
            process.join(60)
        assert sorted(process.exitcode for process in pair) == [0, 2]
        assert rows(folder) == [*range(1, 13)]
        assert (checkpoint.latest(folder) / "model.safetensors").read_bytes() == alone


def test_a_killed_run_is_no_obstacle(tmp_path):
    process = start(tmp_path, steps=10_000, pause=0.01, workers=2)
    wait_for_rows(tmp_path, 5, process)
    process.kill()
    process.join()
    assert trainer(tmp_path, 8).run().step == 8


def train_as_rank(folder: Path) -> None:
    run = trainer(folder, 6)
    run.run()
    assert run.accelerator.num_processes == 2


def refused_as_rank(folder: Path) -> None:
    """By the lock, or because the other run saves while the ranks look for its checkpoints."""
    reasons = r"is training in this|refused, as the main|got checkpoints of steps"
    with pytest.raises(ValueError, match=reasons):
        trainer(folder, 10_000).run()


def test_processes_of_one_run_share_its_folder(tmp_path):
    run_ranks(2, train_as_rank, tmp_path)
    assert not RunFolder(tmp_path).lock.exists()


def test_all_processes_of_a_second_run_are_refused(tmp_path):
    first = start(tmp_path, steps=10_000, pause=0.01)
    wait_for_rows(tmp_path, 2, first)
    try:
        run_ranks(2, refused_as_rank, tmp_path)
    finally:
        first.kill()
        first.join()


def test_a_run_that_fails_at_once_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("an image that cannot be read")

    monkeypatch.setattr(FakeModel, "objective", fail)
    run = trainer(tmp_path / "new/run", 4)
    with pytest.raises(ValueError, match="cannot be read"):
        run.run()
    assert not [*tmp_path.iterdir()]


def test_a_run_that_fails_later_keeps_its_story(tmp_path, monkeypatch):
    plain = FakeModel.objective

    def fail(model, *arguments, **options):
        if options["step"] == 2:
            raise ValueError("an image that cannot be read")
        return plain(model, *arguments, **options)

    monkeypatch.setattr(FakeModel, "objective", fail)
    with pytest.raises(ValueError, match="cannot be read"):
        trainer(tmp_path, 4).run()
    assert rows(tmp_path) == [1, 2]
    assert not RunFolder(tmp_path).lock.exists()
