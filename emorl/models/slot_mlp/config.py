"""The configuration of Slot MLP."""

from __future__ import annotations

from dataclasses import dataclass

from emorl.models.slot_autoencoder import SlotAutoencoderConfig


@dataclass(kw_only=True)
class SlotMLPConfig(SlotAutoencoderConfig):
    """Architecture and loss of Slot MLP.

    Attributes:
        hidden_dim: width of the MLP's hidden layer.
    """

    hidden_dim: int = 512
