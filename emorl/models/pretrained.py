"""Models in folders: `config.json` and `model.safetensors`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError

if TYPE_CHECKING:
    from emorl.models.base import ObjectCentricModel

Model = TypeVar("Model", bound="ObjectCentricModel")

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(model: ObjectCentricModel, folder: str | Path) -> None:
    """Write a model into `folder`, which is made if needed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = {"model": model.name, **dataclasses.asdict(model.config)}
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n")
    safetensors.torch.save_file(model.state_dict(), folder / WEIGHTS)


def load(kind: type[Model], folder: str | Path) -> Model:
    """Load a model of class `kind`.

    Raises:
        ValueError: if the folder is not one of that model's, with the reason.
    """
    description = read_description(folder)
    if description.pop("model", None) != kind.name:
        raise ValueError(f"{folder}: not a folder of the model {kind.name}")
    try:
        model = kind(kind.Config(**description))
        model.load_state_dict(safetensors.torch.load_file(Path(folder) / WEIGHTS))
    except (SafetensorError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: damaged, or another version's: {reason}") from None
    return model


def read_description(folder: str | Path) -> dict[str, Any]:
    """The description of a folder's model, from its `config.json`.

    Raises:
        ValueError: if the folder is not one that `save` wrote.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (Path(folder) / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: not a model folder, {' and '.join(missing)} missing")
    try:
        description: dict[str, Any] = json.loads((Path(folder) / CONFIG).read_text())
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{folder}: damaged, or another version's: {error}") from None
    return description
