"""Slot Attention (Locatello et al., NeurIPS 2020), and EfficientMORL's variant of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from emorl.models.base import check_config
from emorl.models.slot_autoencoder import SlotAutoencoder, SlotAutoencoderConfig
from emorl.nn.encoder import ImageEncoder
from emorl.nn.initial_slots import LearnedSlots, SampledSlots
from emorl.nn.slot_attention import SlotAttention, SlotIterations


@dataclass
class SlotAttentionConfig(SlotAutoencoderConfig):
    """Architecture and loss of Slot Attention.

    Attributes:
        iterations: T; another number can be given at call time.
        initial_slots: "sampled" from one learned Gaussian, or "learned", one vector for each
            slot; the number of slots is then fixed.
        implicit_gradient: differentiate the last iteration alone (Chang et al. 2022). What the
            initial slots are made of is then never trained.
    """

    iterations: int = 3
    initial_slots: Literal["sampled", "learned"] = "sampled"
    implicit_gradient: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_config(self, positive=("iterations",))


class SlotAttentionModel(SlotAutoencoder):
    """Slot Attention: slots that compete for pixels, T times, and a decoder that mixes them.

    The variant "efficient_morl" is the one that Emami et al. 2021 timed and drew: no layer norm
    before keys and values, initial slots with a softplus variance, colours through a sigmoid, the
    squared error summed over the image, initial weights 50 times smaller. The original starts
    here as Xavier normal where it was Glorot uniform (same variance), its GRU and the encoder's
    position map as PyTorch does, and layer norms have PyTorch's epsilon of 1e-5.
    """

    name: ClassVar[str] = "slot_attention"
    Config: ClassVar[type] = SlotAttentionConfig
    config: SlotAttentionConfig

    def __init__(self, config: SlotAttentionConfig | None = None) -> None:
        c = config or SlotAttentionConfig()
        super().__init__(c)
        original = c.variant == "original"
        self.encoder = ImageEncoder(c.encoder_channels, c.encoder_layers, c.image_size, c.gain)
        self.initial_slots = (
            LearnedSlots(c.num_slots, c.slot_dim)
            if c.initial_slots == "learned"
            else SampledSlots(c.slot_dim, "exp" if original else "softplus")
        )
        self.attention = SlotAttention(
            c.encoder_channels,
            c.slot_dim,
            norm_inputs=original,
            implicit_gradient=c.implicit_gradient,
            gain=c.gain,
            backend=c.backend,
        )

    def _slots(
        self,
        images: Tensor,
        num_slots: int,
        iterations: int | None,
        generator: torch.Generator | None,
        keep_attention: bool,
    ) -> SlotIterations:
        """The slots after each iteration; noise is drawn once, as [B, K, D]."""
        iterations = self.config.iterations if iterations is None else iterations
        if iterations < 1:
            raise ValueError(f"iterations: expected 1 or more, got {iterations}")
        slots = self.initial_slots(len(images), num_slots, generator)
        result: SlotIterations = self.attention(
            self.encoder(images), slots, iterations, keep_attention
        )
        return result
