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

MODELS: dict[str, type[ObjectCentricModel]] = {
    model.name: model for model in (EfficientMORL, SlotAttentionModel, SlotMLP, IODINE, MONet)
}


def load_model(folder: str | Path) -> ObjectCentricModel:
    """Load the model of a folder that `save_pretrained` wrote.

    Raises:
        ValueError: if the folder or its model is unknown.
    """
    name = read_description(folder).get("model")
    if name not in MODELS:
        raise ValueError(f"{folder}: unknown model {name!r}, expected one of {[*MODELS]}")
    return MODELS[name].from_pretrained(folder)


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
