"""Slot Attention (Locatello et al., NeurIPS 2020), and EfficientMORL's variant of it."""

from __future__ import annotations

from typing import ClassVar

from emorl.models.base import Request
from emorl.models.slot_attention.attention import SlotAttention
from emorl.models.slot_attention.config import SlotAttentionConfig
from emorl.models.slot_autoencoder import SlotAutoencoder
from emorl.nn.initial_slots import LearnedSlots, SampledSlots
from emorl.nn.networks import ImageEncoder
from emorl.nn.slot_iterations import SlotIterations


class SlotAttentionModel(SlotAutoencoder):
    """Slot Attention: slots that compete for pixels, T times, and a decoder that mixes them.

    The variant "efficient_morl" is the one that Emami et al. 2021 timed and drew: no layer norm
    before keys and values, initial slots with a softplus variance, colours through a sigmoid, the
    squared error summed over the image, initial weights 50 times smaller. The original starts
    here as Xavier normal where it was Glorot uniform (same variance), its GRU and the encoder's
    position map as PyTorch does, and layer norms have PyTorch's epsilon of 1e-5.
    """

    name: ClassVar[str] = "slot_attention"
    Config = SlotAttentionConfig
    iterates = True
    initial_draws = 1
    config: SlotAttentionConfig

    def __init__(self, config: SlotAttentionConfig | None = None) -> None:
        c = config or SlotAttentionConfig()
        super().__init__(c)
        original = c.variant == "original"
        self.encoder = ImageEncoder(
            c.encoder_channels,
            c.encoder_layers,
            c.image_size,
            gain=c.gain,
            convolution_backend=c.convolution_backend,
        )
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

    @property
    def free_slots(self) -> bool:  # type: ignore[override]
        """Whether the initial slots are drawn."""
        return self.config.initial_slots == "sampled"

    def _infer(self, request: Request) -> SlotIterations:
        """The slots after each iteration; noise is drawn once, as [B, K, D]."""
        images = 2 * request.target - 1
        slots = self.initial_slots(len(images), request.num_slots, request.generator)
        result: SlotIterations = self.attention(
            self.encoder(images), slots, request.iterations, request.details
        )
        return result
