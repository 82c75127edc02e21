"""Checkpoints, written atomically; each is a model folder too."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from emorl.models.base import ObjectCentricModel
from emorl.runs.files import remove, replacing
from emorl.runs.folder import MODEL_FILES, STATE_FILE, RunFolder, by_step


def save(place: Path, model: ObjectCentricModel, state: dict[str, Any], *, keep: int) -> None:
    """Write a checkpoint, then remove all but the newest ones of its run.

    A process killed at any moment leaves either a complete checkpoint or none.

    Args:
        place: from `RunFolder.checkpoint`; a complete checkpoint that is already there stays.
        model: the model without wrappers.
        state: what else the run needs, tensors and plain values in dicts and lists.
        keep: how many checkpoints stay, >= 1.
    """
    if not _is_complete(place):
        with replacing(place) as unfinished:
            model.save_pretrained(unfinished)
            torch.save(state, unfinished / STATE_FILE)
    for old in _complete(place.parent)[:-keep]:
        remove(old)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The `state` that `save` was given, on the CPU; no code in it is ever run.

    Raises:
        ValueError: if the file is damaged or holds more than tensors and plain values.
    """
    path = checkpoint / STATE_FILE
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
    return next(reversed(_complete(RunFolder(run_dir).checkpoints)), None)


def resolve(path: str | Path) -> Path:
    """The model folder of a run, of a checkpoint, or given as it is.

    Args:
        path: a run folder (its newest checkpoint is taken), a checkpoint, or a folder written by
            `save_pretrained`.

    Raises:
        ValueError: if it is none of these, with the reason.
    """
    folder = Path(path)
    if not folder.exists():
        raise ValueError(f"{folder}: no such folder")
    if all((folder / name).is_file() for name in MODEL_FILES):
        return folder
    newest = latest(folder)
    if newest is not None:
        return newest
    run = RunFolder(folder)
    if run.config.is_file():
        raise ValueError(f"{folder}: this run has no complete checkpoint yet")
    raise ValueError(
        f"{folder}: expected a run folder ({run.checkpoints.name}/), a checkpoint or a model "
        f"folder ({' and '.join(MODEL_FILES)})"
    )


def _complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return [place for place in by_step(folder) if _is_complete(place)]


def _is_complete(place: Path) -> bool:
    return all((place / name).is_file() for name in (*MODEL_FILES, STATE_FILE))
