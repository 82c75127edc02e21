"""Slot MLP's objective in plain PyTorch: the oracle of its tests."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from emorl.models.slot_attention.plain import squared_error
from emorl.nn import plain


def objective(model: Any, images: Tensor) -> Tensor:
    """The loss; there is no noise."""
    embedded = plain.encode(model.encoder, images).flatten(1)
    slots = model.output(model.hidden(embedded).relu())
    return squared_error(model, images, slots.view(len(images), -1, model.config.slot_dim))
