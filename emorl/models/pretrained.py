"""Models in folders: `config.json`, `model.safetensors` and their checksums."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from emorl.paths import in_line, local
from emorl.runs.files import filling
from emorl.runs.folder import CONFIG, STATE_FILE, WEIGHTS
from emorl.runs.integrity import DamagedError, has_checksums, read_verified, write_checksums
from emorl.runs.trained import hint, located

if TYPE_CHECKING:
    from emorl.models.base import ObjectCentricModel

Model = TypeVar("Model", bound="ObjectCentricModel")


def save(model: ObjectCentricModel, folder: str | Path) -> None:
    """Write a model into `folder`, which is made if needed.

    Raises:
        ValueError: if the folder is a run's checkpoint.
        OSError: if the disk is full, say; what was there before stays.
    """
    folder = local(folder)
    require_no_checkpoint(folder)
    description = {"model": model.name, **dataclasses.asdict(model.config)}
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    with filling(folder) as unfinished:
        (unfinished / CONFIG).write_text(json.dumps(description, indent=2) + "\n")
        (unfinished / WEIGHTS).write_bytes(safetensors.torch.save(weights))
        write_checksums(unfinished)


def require_no_checkpoint(folder: Path) -> None:
    """Make sure that a model written to `folder` replaces nothing of a run.

    Raises:
        ValueError: if it would.
    """
    if (folder / STATE_FILE).exists():
        raise ValueError(f"{folder}: expected a folder for a model alone, got a run's checkpoint")


def load(kind: type[Model], folder: str | Path, *, allow_non_finite: bool = False) -> Model:
    """Load a model of class `kind`.

    Args:
        kind: the class.
        folder: that `save` wrote, or a trained model's name; without a model it is this one's.
        allow_non_finite: take weights that are infinite or not a number.

    Raises:
        DamagedError: if a file is missing or not as it was written, or a weight is not finite.
        ValueError: if the folder is not one of that model's, with the reason.
    """
    folder = located(folder, kind.name)
    description = read_description(folder)
    if description.pop("model", None) != kind.name:
        raise ValueError(f"{folder}: not a folder of the model {kind.name}")
    path = folder / WEIGHTS
    try:
        weights = safetensors.torch.load(read_verified(path))
    except SafetensorError as error:
        raise DamagedError(f"{folder}: {_reason(error)}") from None
    try:
        model = _built(kind, description, folder / CONFIG)
        _require_dtypes(weights, model.state_dict())
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        # Files with checksums are as they were written: then it is another version's.
        kind_of_error = ValueError if has_checksums(folder) else DamagedError
        raise kind_of_error(f"{folder}: {_reason(error)}") from None
    name = first_non_finite(weights)
    if name and not allow_non_finite:
        raise DamagedError(f"{path}: {name} is not finite (allow_non_finite=True takes it)")
    return model


def _built(kind: type[Model], values: dict[str, Any], path: Path) -> Model:
    """The model that a file describes; errors name the file."""
    try:
        return kind(kind.Config(**values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds an infinity or NaN, if there is one."""
    return next((name for name, value in tensors.items() if not value.isfinite().all()), None)


def read_description(folder: str | Path) -> dict[str, Any]:
    """The description of a folder's model, from its `config.json`.

    Raises:
        ValueError: if there is no such folder.
        DamagedError: if it is not one that `save` wrote, or a file is not as it was.
    """
    if not os.path.lexists(folder):
        raise ValueError(f"{in_line(folder)}: no such folder{hint(Path(folder))}")
    missing = [name for name in (CONFIG, WEIGHTS) if not (Path(folder) / name).is_file()]
    if missing:
        raise DamagedError(
            f"{folder}: not a model folder, {' and '.join(missing)} missing{hint(Path(folder))}"
        )
    try:
        description = json.loads(read_verified(Path(folder) / CONFIG))
        if not isinstance(description, dict):
            raise TypeError(f"{CONFIG}: expected an object, got {type(description).__name__}")
    except DamagedError:
        raise
    except (ValueError, TypeError, RecursionError) as error:  # not JSON, not text, too deep
        raise DamagedError(f"{folder}: {_reason(error)}") from None
    return description


def _require_dtypes(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """`load_state_dict` compares names and shapes, and would convert numbers of another kind."""
    for name, value in own.items():
        if name in found and found[name].is_floating_point() != value.is_floating_point():
            raise TypeError(f"{name}: expected {value.dtype}, got {found[name].dtype}")


def _reason(error: Exception) -> str:
    return f"damaged, or another version's: {' '.join(str(error).split())}"
