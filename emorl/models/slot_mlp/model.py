"""Slot MLP: the baseline whose slots have an order (Locatello et al. 2020; Emami et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import nn

from emorl.models.base import Request
from emorl.models.slot_autoencoder import SlotAutoencoder
from emorl.models.slot_mlp.config import SlotMLPConfig
from emorl.nn.initialisation import init_xavier
from emorl.nn.networks import ImageEncoder
from emorl.nn.slot_iterations import SlotIterations


class SlotMLP(SlotAutoencoder):
    """An MLP maps the embedded image to K slots in a fixed order; no noise, no iterations.

    Its layer sizes are unpublished, and these are our stand-in: Slot Attention's encoder with
    stride 2 in all convolutions but the first, flattened, a hidden layer of 512 with ReLU, and a
    linear layer to K * D numbers. Decoder, loss and variants are Slot Attention's. The number of
    slots and the image size are fixed by the layers' sizes.
    """

    name: ClassVar[str] = "slot_mlp"
    Config = SlotMLPConfig
    free_slots = free_size = False
    config: SlotMLPConfig

    def __init__(self, config: SlotMLPConfig | None = None) -> None:
        c = config or SlotMLPConfig()
        super().__init__(c)
        self.encoder = ImageEncoder(
            c.encoder_channels,
            c.encoder_layers,
            c.image_size,
            gain=c.gain,
            convolution_backend=c.convolution_backend,
            stride=2,
        )
        height, width = self.encoder.grid
        self.hidden = nn.Linear(height * width * c.encoder_channels, c.hidden_dim)
        self.output = nn.Linear(c.hidden_dim, c.num_slots * c.slot_dim)
        init_xavier(self.hidden, c.gain)
        init_xavier(self.output, c.gain)

    def _infer(self, request: Request) -> SlotIterations:
        """The slots, which are there at once."""
        features = self.encoder(2 * request.target - 1).dense().flatten(1)
        slots = self.output(F.relu(self.hidden(features)))
        return SlotIterations([slots.view(len(slots), request.num_slots, -1)], [])
