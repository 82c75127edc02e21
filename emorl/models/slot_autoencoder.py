"""What Slot Attention and Slot MLP share: slots in, image out, and the squared error to descend.

Legend: B batch, K slots, D slot width, H W image, T iterations.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from emorl.models.base import (
    Decomposition,
    ObjectCentricModel,
    Objective,
    Stage,
    check_config,
    checked_images,
)
from emorl.nn.decoder import Activation, DecoderKind, make_decoder
from emorl.nn.slot_attention import SlotIterations
from emorl.ops import Backend, mixture_nll
from emorl.training.objective import GECO

Variant = Literal["original", "efficient_morl"]
_GAINS: dict[Variant, float] = {"original": 1.0, "efficient_morl": 0.02}


@dataclass
class SlotAutoencoderConfig:
    """Architecture and loss of an autoencoder through slots.

    Attributes:
        image_size: (height, width) in pixels.
        num_slots: K.
        slot_dim: D, width of a slot.
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
        init_position_gain: further gain of the decoder's initial position map. With 4, slots part
            from each other sooner.
        backend: of the fused operators, "auto", "native", "triton" or "reference".
    """

    image_size: tuple[int, int] = (128, 128)
    num_slots: int = 7
    slot_dim: int = 64
    encoder_channels: int = 64
    encoder_layers: int = 4
    decoder: DecoderKind = "big"
    decoder_channels: int | None = None
    decoder_activation: Activation | None = None
    variant: Variant = "original"
    init_gain: float | None = None
    init_position_gain: float = 1.0
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        check_config(
            self,
            positive=(
                "num_slots",
                "slot_dim",
                "encoder_channels",
                "encoder_layers",
                "decoder_channels",
                "init_gain",
                "init_position_gain",
            ),
        )

    @property
    def gain(self) -> float:
        """Of the initial weights."""
        return _GAINS[self.variant] if self.init_gain is None else self.init_gain


class SlotAutoencoder(ObjectCentricModel):
    """Slots, decoded one by one and mixed by their masks, must give the image back.

    The loss is the squared error between image and mixture: in the original its mean over an
    image in [-1, 1], where colours have no bounds; in the variant its sum over an image in
    [0, 1], where they pass a sigmoid. There is no likelihood and no KL term: `Objective.nll` is
    the squared error, also under "squared_error" in `terms`, and `Objective.kl` is 0.
    """

    config: SlotAutoencoderConfig

    def __init__(self, config: SlotAutoencoderConfig) -> None:
        super().__init__(config)
        self.decoder = make_decoder(
            config.decoder,
            config.slot_dim,
            config.image_size,
            config.decoder_channels,
            config.decoder_activation,
            config.gain,
            config.init_position_gain,
            config.backend,
        )

    @abstractmethod
    def _slots(
        self,
        images: Tensor,
        num_slots: int,
        iterations: int | None,
        generator: torch.Generator | None,
        keep_attention: bool,
    ) -> SlotIterations:
        """The slots of images [B, 3, H, W] in [-1, 1], after each iteration if there are any.

        Raises:
            ValueError: for numbers that are not possible, saying which are.
        """

    def objective(
        self,
        images: Tensor,
        *,
        geco: GECO | None = None,
        step: int | None = None,
        kl_weight: float = 1.0,
        refinement_steps: int | None = None,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
        iterations: int | None = None,
    ) -> Objective:
        """The squared error of the reconstruction.

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W].
            geco: must be None.
            step: has no effect.
            kl_weight: has no effect, as there is no KL term.
            refinement_steps: must be None.
            num_slots: K; None for the configuration's.
            generator: of all noise; None for the global one.
            iterations: T, where the model iterates; None for the configuration's.

        Raises:
            ValueError: for images or arguments that are not possible, saying which are.
        """
        if geco is not None:
            raise ValueError(f"geco: {self.name} has no KL term, expected None, got a GECO")
        target = self._target(images, refinement_steps)
        slots = self._infer(target, num_slots, iterations, generator).slots[-1]
        decoded = self._decode(slots, target)
        error = self._squared_error(decoded, target)
        loss = error.mean()
        return Objective(
            loss=loss,
            nll=loss.detach(),
            kl=torch.zeros_like(loss),
            terms={"squared_error": error.detach()},
            decomposition=self._assemble(decoded.detach(), slots.detach()),
        )

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        *,
        num_slots: int | None = None,
        refinement_steps: int | None = None,
        generator: torch.Generator | None = None,
        details: bool = False,
        iterations: int | None = None,
    ) -> Decomposition:
        """Decompose images.

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W].
            num_slots: K; None for the configuration's.
            refinement_steps: must be None.
            generator: of all noise; None for the global one.
            details: fill `attention` and `stages` ("iteration 1", ..), where the model iterates.
            iterations: T, where the model iterates; None for the configuration's.

        Returns:
            The decomposition, without a graph. The original's colours are rescaled to [0, 1] and
            clamped there, which the loss does not do.

        Raises:
            ValueError: for images or arguments that are not possible, saying which are.
        """
        target = self._target(images, refinement_steps)
        slots, attention = self._infer(target, num_slots, iterations, generator, details)
        stages = slots if details else slots[-1:]
        decoded = [self._assemble(self._decode(stage, target), stage) for stage in stages]
        if not attention:
            return decoded[-1]
        return replace(
            decoded[-1],
            attention=torch.stack(attention, dim=1).unflatten(-1, target.shape[2:]),
            stages=tuple(Stage(f"iteration {i}", stage) for i, stage in enumerate(decoded, 1)),
        )

    def _target(self, images: Tensor, refinement_steps: int | None) -> Tensor:
        if refinement_steps is not None:
            raise ValueError(
                f"refinement_steps: {self.name} has none, expected None, got {refinement_steps}"
            )
        return checked_images(images, self.decoder.output.weight.dtype)

    def _infer(
        self,
        target: Tensor,
        num_slots: int | None,
        iterations: int | None,
        generator: torch.Generator | None,
        keep_attention: bool = False,
    ) -> SlotIterations:
        num_slots = self.config.num_slots if num_slots is None else num_slots
        if num_slots < 1:
            raise ValueError(f"num_slots: expected 1 or more, got {num_slots}")
        return self._slots(2 * target - 1, num_slots, iterations, generator, keep_attention)

    def _decode(self, slots: Tensor, target: Tensor) -> Tensor:
        """Colours before their activation and mask logits, [B, K, 4, H, W]."""
        decoded: Tensor = self.decoder(slots.flatten(0, 1), (target.shape[2], target.shape[3]))
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

    def _assemble(self, decoded: Tensor, slots: Tensor) -> Decomposition:
        if self.config.variant == "efficient_morl":
            return Decomposition.assemble(decoded, slots)
        masks = decoded[:, :, 3:].softmax(dim=1)
        components = ((decoded[:, :, :3] + 1) / 2).clamp(0, 1)
        return Decomposition((masks * components).sum(dim=1), masks, components, slots)
