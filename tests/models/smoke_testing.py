"""Tiny models, and their losses, for tests of all models."""

from __future__ import annotations

import torch
from torch import Tensor

from emorl.models import MODELS, ObjectCentricModel
from emorl.training.config_file import find_config, load_config


def smoke(name: str, **options: object) -> ObjectCentricModel:
    """A tiny model of that kind, in float64 and with weights that are not all close to zero.

    Args:
        name: of the model.
        options: of its network, in place of the configuration's.
    """
    torch.manual_seed(0)
    network = load_config(find_config("smoke", name)).network
    for option, value in options.items():
        setattr(network, option, value)
    model = MODELS[name](network).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def loss_of(model: ObjectCentricModel, **options: int) -> Tensor:
    """The loss of two images, always the same ones and with the same noise."""
    noise = torch.Generator().manual_seed(1)
    images = torch.rand((2, 3, *model.config.image_size), generator=noise, dtype=torch.float64)
    return model.objective(images, generator=noise, **options).loss
