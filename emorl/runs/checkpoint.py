"""Checkpoints that are there whole or not at all.

A run keeps them in `checkpoints/step-00001000/{config.json, model.safetensors, training.pt}`. The
first two are what `save_pretrained` writes, so that every checkpoint is also a model folder.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from emorl.models.base import ObjectCentricModel

_STEP = re.compile(r"step-(\d{8,})")
_MODEL_FILES = ("config.json", "model.safetensors")
_FILES = (*_MODEL_FILES, "training.pt")
_UNFINISHED = ".unfinished-"


def place_of(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def save(place: Path, model: ObjectCentricModel, state: dict[str, Any], *, keep: int) -> None:
    """Write a checkpoint, then remove all but the newest ones of its run.

    The folder is written beside its place, every file of it is brought to the disk, and then it
    is renamed: a process killed at any moment leaves either a complete checkpoint or none.

    Args:
        place: from `place_of`; a complete checkpoint that is already there stays.
        model: the model without wrappers.
        state: what else the run needs, tensors and plain values in dicts and lists.
        keep: how many checkpoints stay, >= 1.
    """
    if not _is_complete(place):
        beside = place.with_name(_UNFINISHED + place.name)
        if beside.exists():
            shutil.rmtree(beside)
        model.save_pretrained(beside)
        torch.save(state, beside / "training.pt")
        for path in (*beside.iterdir(), beside):
            _to_disk(path)
        beside.rename(place)
        _to_disk(place.parent)
    for old in _complete(place.parent)[:-keep]:
        _remove(old)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The `state` that `save` was given, on the CPU; no code in it is ever run.

    Raises:
        ValueError: if the file is damaged or holds more than tensors and plain values.
    """
    path = checkpoint / "training.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError):
        raise ValueError(
            f"{path}: damaged, or more than tensors and plain values; without this folder the run "
            f"goes on from the checkpoint before"
        ) from None
    return state


def latest(run_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, None where there is none."""
    return next(reversed(_complete(Path(run_dir) / "checkpoints")), None)


def clean(run_dir: Path) -> None:
    """Remove what a killed process left half written or half removed."""
    for leftover in (run_dir / "checkpoints").glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover)


def resolve(path: str | Path) -> Path:
    """The model folder that a user means by a run, a checkpoint or a model folder.

    Args:
        path: a run folder (its newest checkpoint is taken), a checkpoint, or a folder written by
            `save_pretrained`.

    Raises:
        ValueError: if it is none of these, with the reason.
    """
    folder = Path(path)
    if not folder.exists():
        raise ValueError(f"{folder}: no such folder")
    if all((folder / name).is_file() for name in _MODEL_FILES):
        return folder
    newest = latest(folder)
    if newest is not None:
        return newest
    if (folder / "config.yaml").is_file():
        raise ValueError(f"{folder}: this run has no complete checkpoint yet")
    raise ValueError(
        f"{folder}: expected a run folder (checkpoints/), a checkpoint or a model folder "
        f"({' and '.join(_MODEL_FILES)})"
    )


def run_of(path: str | Path) -> Path | None:
    """The run that a run folder or a checkpoint belongs to; None for a lone model folder."""
    folder = Path(path).resolve()
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    return run if (run / "config.yaml").is_file() else None


def _complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    found = [p for p in folder.glob("step-*") if _is_complete(p)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def _is_complete(folder: Path) -> bool:
    named = _STEP.fullmatch(folder.name) is not None
    return named and all((folder / name).is_file() for name in _FILES)


def _remove(folder: Path) -> None:
    """Rename, then delete: a half deleted folder must not pass for a checkpoint."""
    doomed = folder.with_name(_UNFINISHED + folder.name)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
