"""Base of Slot Attention and Slot MLP: an autoencoder through slots, with a squared error.

Legend: B batch, K slots, D slot width, H W image, T iterations.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from emorl.models.base import Decomposition, ObjectCentricModel, Objective, Request, Stage
from emorl.models.config import ModelConfig
from emorl.nn.decoders import DecoderKind, make_decoder
from emorl.nn.initialisation import RELEASED_GAIN
from emorl.nn.networks import Activation
from emorl.nn.slot_iterations import SlotIterations
from emorl.ops import mixture_nll

Variant = Literal["original", "efficient_morl"]
_GAINS: dict[Variant, float] = {"original": 1.0, "efficient_morl": RELEASED_GAIN}


@dataclass(kw_only=True)
class SlotAutoencoderConfig(ModelConfig):
    """Architecture and loss of an autoencoder through slots.

    Attributes:
        encoder_channels: width of the image encoder.
        encoder_layers: number of the encoder's convolutions.
        decoder: "big" (Slot Attention's own; image sizes that are multiples of 16), "small" or
            "iodine".
        decoder_channels: width of the decoder; null for the published one.
        decoder_activation: "elu" or "relu"; null for the published one.
        variant: "original" is the published model, "efficient_morl" that of EfficientMORL's
            released code; see the model for what differs.
        init_gain: of the initial weights (Xavier normal); null for the variant's: 1 (Glorot's, as
            published) or 0.02.
        init_position_gain: further gain of the decoder's initial position map. With 2 to
            4, slots part from each other sooner; at 4 some divide objects by place for long.
    """

    POSITIVE = ("init_gain", "init_position_gain")

    image_size: tuple[int, int] = (128, 128)
    num_slots: int = 7
    encoder_channels: int = 64
    encoder_layers: int = 4
    decoder: DecoderKind = "big"
    decoder_channels: int | None = None
    decoder_activation: Activation | None = None
    variant: Variant = "original"
    init_gain: float | None = None
    init_position_gain: float = 1.0

    @property
    def gain(self) -> float:
        """Of the initial weights."""
        return _GAINS[self.variant] if self.init_gain is None else self.init_gain


class SlotAutoencoder(ObjectCentricModel):
    """Reconstructs an image from slots, decoded one by one and mixed by their masks.

    The loss is the squared error between image and mixture: in the original its mean over an
    image in [-1, 1], where colours have no bounds; in the variant its sum over an image in
    [0, 1], where they pass a sigmoid. There is no likelihood and no KL term: `Objective.nll` is
    the squared error, also under "squared_error" in `terms`, and `Objective.kl` is 0. In
    decompositions the original's colours are rescaled to [0, 1] and clamped there.
    """

    has_kl = False
    config: SlotAutoencoderConfig

    def __init__(self, config: SlotAutoencoderConfig) -> None:
        super().__init__(config)
        self.decoder = make_decoder(
            config.decoder,
            config.slot_dim,
            config.image_size,
            channels=config.decoder_channels,
            activation=config.decoder_activation,
            gain=config.gain,
            position_gain=config.init_position_gain,
            backend=config.backend,
            convolution_backend=config.convolution_backend,
        )

    @abstractmethod
    def _infer(self, request: Request) -> SlotIterations:
        """The slots after each iteration, if there are any."""

    def _objective(self, request: Request) -> Objective:
        """The squared error of the reconstruction."""
        slots = self._infer(request).slots[-1]
        decoded = self.decode(slots, request.size)
        error = self._squared_error(decoded, request.target)
        return Objective(
            loss=error.mean(),
            nll_per_image=error.detach(),
            kl_per_image=torch.zeros_like(error),
            terms={"squared_error": error.detach()},
            decomposition=self.compose(decoded.detach(), slots.detach()),
        )

    def _decompose(self, request: Request) -> Decomposition:
        slots, attention = self._infer(request)
        stages = slots if request.details else slots[-1:]
        decoded = [self.compose(self.decode(stage, request.size), stage) for stage in stages]
        if not attention:
            return decoded[-1]
        return replace(
            decoded[-1],
            attention=torch.stack(attention, dim=1).unflatten(-1, request.size),
            stages=tuple(Stage(f"iteration {i}", stage) for i, stage in enumerate(decoded, 1)),
        )

    def decode(self, slots: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Decode slots, each by itself; as the base's."""
        decoded: Tensor = self.decoder(slots.flatten(0, 1), size or self.config.image_size)
        return decoded.unflatten(0, slots.shape[:2])

    def _squared_error(self, decoded: Tensor, target: Tensor) -> Tensor:
        """Of each image, [B]: twice the NLL of a unit Gaussian without its constant."""
        original = self.config.variant == "original"
        nll = mixture_nll(
            2 * target - 1 if original else target,
            decoded,
            sigma=1.0,
            kind="gaussian",
            rgb_activation="none" if original else "sigmoid",
            backend=self.config.backend,
        )
        return nll * (2 / target[0].numel() if original else 2)

    def compose(self, decoded: Tensor, slots: Tensor) -> Decomposition:
        """The decomposition that decoded slots amount to; as the base's."""
        if self.config.variant == "efficient_morl":
            return Decomposition.assemble(decoded, slots)
        masks = decoded[:, :, 3:].softmax(dim=1)
        components = ((decoded[:, :, :3] + 1) / 2).clamp(0, 1)
        return Decomposition((masks * components).sum(dim=1), masks, components, slots)
