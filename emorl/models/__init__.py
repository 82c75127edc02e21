"""Object-centric models, all with the interface of `ObjectCentricModel`."""

from __future__ import annotations

from pathlib import Path

from emorl.models.base import (
    Decomposition,
    ObjectCentricModel,
    Objective,
    Stage,
)
from emorl.models.config import ModelConfig
from emorl.models.efficient_morl import EfficientMORL, EfficientMORLConfig
from emorl.models.geco import GECO
from emorl.models.iodine import IODINE, IODINEConfig
from emorl.models.monet import MONet, MONetConfig
from emorl.models.pretrained import read_description
from emorl.models.slot_attention import SlotAttentionConfig, SlotAttentionModel
from emorl.models.slot_mlp import SlotMLP, SlotMLPConfig
from emorl.runs import checkpoint
from emorl.runs.integrity import DamagedError

MODELS: dict[str, type[ObjectCentricModel]] = {
    model.name: model for model in (EfficientMORL, SlotAttentionModel, SlotMLP, IODINE, MONet)
}


def load_model(path: str | Path, *, allow_non_finite: bool = False) -> ObjectCentricModel:
    """Load whatever model a run, a checkpoint or a folder of `save_pretrained` holds.

    Args:
        path: a run's folder (its newest checkpoint is taken), a checkpoint, a model's folder, or
            the name of a trained model that comes along, e.g. "efficient_morl/tetrominoes-laptop";
            without a model it is EfficientMORL's.
        allow_non_finite: take weights that are infinite or not a number.

    Raises:
        ValueError: if it is none of these, its model is unknown, a file is not as it was written,
            or a weight is not finite; with the reason.
    """
    return find_model(path, allow_non_finite=allow_non_finite)[1]


def find_model(
    path: str | Path, *, allow_non_finite: bool = False
) -> tuple[Path, ObjectCentricModel]:
    """The model of `load_model`, and the folder that it was read from."""
    while True:
        folder = checkpoint.resolve(path)
        try:
            name = read_description(folder).get("model")
            if not isinstance(name, str) or name not in MODELS:
                raise ValueError(f"{folder}: unknown model {name!r}, expected one of {[*MODELS]}")
            return folder, MODELS[name].from_pretrained(folder, allow_non_finite=allow_non_finite)
        except DamagedError:
            if folder.exists():
                raise
            # A training has removed its checkpoint meanwhile: take the newest once more.


__all__ = [
    "GECO",
    "IODINE",
    "MODELS",
    "Decomposition",
    "EfficientMORL",
    "EfficientMORLConfig",
    "IODINEConfig",
    "MONet",
    "MONetConfig",
    "ModelConfig",
    "ObjectCentricModel",
    "Objective",
    "SlotAttentionConfig",
    "SlotAttentionModel",
    "SlotMLP",
    "SlotMLPConfig",
    "Stage",
    "load_model",
]
