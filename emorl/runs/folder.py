"""Every path in a run's folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from emorl.paths import local, real
from emorl.runs.trained import located

CONFIG, WEIGHTS = MODEL_FILES = ("config.json", "model.safetensors")
"""What `save_pretrained` writes; a checkpoint is a model folder with a state."""
STATE_FILE = "training.pt"
CHECKSUMS = "SHA256SUMS"
"""Of a model's files, beside them."""

_STEP = re.compile(r"step-\d{8,}")


class RunFolder:
    """Paths of a run's files, whether they exist or not.

    Attributes:
        path: the folder.
        lock: is there while a process trains, see `emorl.runs.lock`.
        config: the whole configuration, which can be run again.
        data: by what the files that it is trained on are known again, see `emorl.training.trace`.
        metrics: a row of JSON for each logged step.
        report: the run as one HTML file.
        comparison: the run beside another one, likewise; the newest.
        tensorboard: rows and pictures as TensorBoard's events.
        checkpoints: a folder for each step that was kept, see `checkpoint`.
        pictures: a folder for each step that was drawn, see `pictures_of`.
        evaluations: a JSON file for each data set, see `evaluation`.
        sweeps: files of each sweep over numbers of steps or slots, see `sweep`.
        traversals: pictures of what the dimensions of slots do.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local(path)
        self.lock = self.path / ".lock"
        self.config = self.path / "config.yaml"
        self.data = self.path / "data.json"
        self.metrics = self.path / "metrics.jsonl"
        self.report = self.path / "report.html"
        self.comparison = self.path / "comparison.html"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "pictures"
        self.evaluations = self.path / "evaluation"
        self.sweeps = self.path / "sweeps"
        self.traversals = self.path / "traversals"

    def misplaced(self) -> str | None:
        """What is in the place of one of the run's files or folders and is none, in words."""
        for path in (self.checkpoints, self.pictures, self.evaluations, self.tensorboard):
            if os.path.lexists(path) and not path.is_dir():
                return f"{path}: expected a folder, got {kind_of(path)}"
        for path in (self.config, self.data, self.metrics, self.report, self.lock):
            if os.path.lexists(path) and not path.is_file():
                return f"{path}: expected a file, got {kind_of(path)}"
        return None

    def checkpoint(self, step: int) -> Path:
        """The folder of a step's checkpoint: `MODEL_FILES` and `STATE_FILE`."""
        return self.checkpoints / _named(step)

    def pictures_of(self, step: int) -> Path:
        """The folder of a step's pictures."""
        return self.pictures / _named(step)

    def evaluation(self, name: str) -> Path:
        """The file of an evaluation."""
        return self.evaluations / f"{name}.json"

    def sweep(self, name: str) -> Path:
        """The file of a sweep."""
        return self.sweeps / f"{name}.json"


def run_of(path: str | Path) -> RunFolder | None:
    """The run of a run folder, a checkpoint or a name; None for a lone model folder."""
    folder = real(located(path))
    run = RunFolder(folder)
    if folder.parent.name == run.checkpoints.name:
        run = RunFolder(folder.parent.parent)
    return run if run.config.is_file() else None


def holds(path: str | Path) -> Literal["run", "model"] | None:
    """What a folder, or what a name stands for, is of: a run, which keeps results, or a model.

    A model may have the configuration that it was trained with beside it; only runs have logs.
    """
    run = RunFolder(located(path))
    if (run.path / CONFIG).is_file() and not run.metrics.is_file():
        return "model"
    return "run" if run.config.is_file() or run.metrics.is_file() else None


def own_run(path: Path) -> RunFolder | None:
    """The run of a run folder, which keeps results; None for all else that a model comes from."""
    return RunFolder(path) if holds(path) == "run" else None


def by_step(folder: Path) -> list[Path]:
    """The folders of steps in `folder`, first step first; none where there is no such folder."""
    return sorted((p for p in folder.glob("*") if _STEP.fullmatch(p.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step that a folder of `by_step` belongs to."""
    return int(folder.name.removeprefix("step-"))


def kind_of(path: Path) -> str:
    """What is there, in words."""
    if not path.exists():
        return "a link that leads nowhere"
    if path.is_dir():
        return "a folder"
    return "a file" if path.is_file() else "a device or a pipe"


def _named(step: int) -> str:
    return f"step-{step:08d}"
