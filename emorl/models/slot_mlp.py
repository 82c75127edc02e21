"""Slot MLP: the baseline whose slots have an order (Locatello et al. 2020; Emami et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.models.base import check_config
from emorl.models.slot_autoencoder import SlotAutoencoder, SlotAutoencoderConfig
from emorl.nn.encoder import ImageEncoder
from emorl.nn.initialisation import init_xavier
from emorl.nn.slot_attention import SlotIterations


@dataclass
class SlotMLPConfig(SlotAutoencoderConfig):
    """Architecture and loss of Slot MLP.

    Attributes:
        hidden_dim: width of the MLP's hidden layer.
    """

    hidden_dim: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        check_config(self, positive=("hidden_dim",))


class SlotMLP(SlotAutoencoder):
    """An MLP maps the embedded image to K slots in a fixed order; no noise, no iterations.

    Its layer sizes are unpublished, and these are our stand-in: Slot Attention's encoder with
    stride 2 in all convolutions but the first, flattened, a hidden layer of 512 with ReLU, and a
    linear layer to K * D numbers. Decoder, loss and variants are Slot Attention's. The number of
    slots and the image size are fixed by the layers' sizes.
    """

    name: ClassVar[str] = "slot_mlp"
    Config: ClassVar[type] = SlotMLPConfig
    config: SlotMLPConfig

    def __init__(self, config: SlotMLPConfig | None = None) -> None:
        c = config or SlotMLPConfig()
        super().__init__(c)
        self.encoder = ImageEncoder(
            c.encoder_channels, c.encoder_layers, c.image_size, c.gain, stride=2
        )
        height, width = self.encoder.grid
        self.hidden = nn.Linear(height * width * c.encoder_channels, c.hidden_dim)
        self.output = nn.Linear(c.hidden_dim, c.num_slots * c.slot_dim)
        init_xavier(self.hidden, c.gain)
        init_xavier(self.output, c.gain)

    def _slots(
        self,
        images: Tensor,
        num_slots: int,
        iterations: int | None,
        generator: torch.Generator | None,
        keep_attention: bool,
    ) -> SlotIterations:
        """The slots, which are there at once."""
        c, size = self.config, tuple(images.shape[2:])
        if iterations is not None:
            raise ValueError(f"iterations: {self.name} has none, expected None, got {iterations}")
        if num_slots != c.num_slots:
            raise ValueError(
                f"num_slots: fixed by the network, expected {c.num_slots}, got {num_slots}"
            )
        if size != c.image_size:
            expected, got = (f"{height}x{width}" for height, width in (c.image_size, size))
            raise ValueError(f"image size: fixed by the network, expected {expected}, got {got}")
        features = self.encoder(images).dense().flatten(1)
        slots = self.output(F.relu(self.hidden(features)))
        return SlotIterations([slots.view(len(images), num_slots, c.slot_dim)], [])
