"""Checkpoints, written atomically; each is a model folder too."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch

from emorl.paths import in_line
from emorl.runs.files import remove, replacing, set_aside
from emorl.runs.folder import MODEL_FILES, STATE_FILE, RunFolder, by_step
from emorl.runs.integrity import read_verified, tensors_of, write_checksums
from emorl.runs.trained import hint, located


class Savable(Protocol):
    """A model, as far as a checkpoint needs it."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `MODEL_FILES`."""


def save(place: Path, model: Savable, state: dict[str, Any], *, keep: int) -> None:
    """Write a checkpoint, then remove all but the newest ones of its run.

    A process killed at any moment leaves either a complete checkpoint or none.

    Args:
        place: from `RunFolder.checkpoint`; a complete checkpoint that is already there stays, and
            an incomplete one is set aside.
        model: the model without wrappers.
        state: what else the run needs, tensors and plain values in dicts and lists.
        keep: how many checkpoints stay, >= 1.

    Raises:
        OSError: if the disk is full, say; the checkpoints before stay.
    """
    if not _is_complete(place):
        if place.exists():
            set_aside(place)
        with replacing(place) as unfinished:
            model.save_pretrained(unfinished)
            (unfinished / STATE_FILE).write_bytes(_bytes_of(state))
            write_checksums(unfinished)
    for old in _complete(place.parent)[:-keep]:
        remove(old)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The `state` that `save` was given, on the CPU; no code in it is ever run.

    Raises:
        DamagedError: if the file is damaged or holds more than tensors and plain values.
    """
    path = checkpoint / STATE_FILE
    state: dict[str, Any] = tensors_of(read_verified(path), path)
    return state


def latest(run_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, None where there is none."""
    return next(reversed(_complete(RunFolder(run_dir).checkpoints)), None)


def resolve(path: str | Path) -> Path:
    """The model folder of a run, of a checkpoint, or given as it is or by name.

    Args:
        path: a run folder (its newest checkpoint is taken), a checkpoint, a folder written by
            `save_pretrained`, or the name of a trained model.

    Raises:
        ValueError: if it is none of these, with the reason.
    """
    folder = located(path)
    if not os.path.isdir(folder):  # Path.is_dir raises an error for a name that is too long
        reason = "not a folder" if os.path.exists(folder) else f"no such folder{hint(folder)}"
        raise ValueError(f"{in_line(folder)}: {reason}")
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if not missing:
        return folder
    newest = latest(folder)
    if newest is not None:
        return newest
    run = RunFolder(folder)
    if run.config.is_file():
        raise ValueError(f"{in_line(folder)}: this run has no complete checkpoint yet")
    raise ValueError(
        f"{in_line(folder)}: expected a run folder, a checkpoint or a model folder; "
        f"{run.checkpoints.name}/, {' and '.join(missing)} missing"
    )


def _bytes_of(state: dict[str, Any]) -> bytes:
    """What `torch.save` writes; on a full disk it would raise no OSError itself."""
    buffer = BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return [place for place in by_step(folder) if _is_complete(place)]


def _is_complete(place: Path) -> bool:
    return all((place / name).is_file() for name in (*MODEL_FILES, STATE_FILE))
