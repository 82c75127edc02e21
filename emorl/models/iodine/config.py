"""The configuration of IODINE, which has two published forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emorl.models.config import ModelConfig
from emorl.models.iodine.inputs import Coordinates
from emorl.models.iodine.likelihood import MixtureKind
from emorl.models.iodine.refinement import ImageRefinementSpec, Pooling
from emorl.nn.initialisation import RELEASED_GAIN
from emorl.nn.networks import BroadcastSpec


@dataclass(kw_only=True)
class IODINEConfig(ModelConfig):
    """Architecture and objective of IODINE; the defaults are the EfficientMORL authors' variant.

    [IE] marks their code (IODINE.pytorch), which their paper timed, and [DM] DeepMind's release.

    Attributes:
        image_size: (height, width) in pixels; other sizes can be given at call time where `pooling`
            is "mean".
        refinement_steps: I; I + 1 images are decoded. Another number can be given at call time.
        decoder_layers: number of the decoder's hidden convolutions.
        decoder_kernel: their side.
        decoder_padding: their zero padding.
        decoder_final_kernel: side of the decoder's last convolution, which keeps the size.
        decoder_channels: width of the decoder.
        decoder_constant: a number that the decoder gets beside each slot, 5 in [DM]; null for none.
        rgb_activation: "sigmoid", or "none" ([DM]).
        likelihood: "mixture" (Gaussian, per channel, [IE]), "mixture_joint" (Gaussian, jointly over
            the channels, the IODINE paper's) or "logistic" (jointly, [DM]).
        sigma: standard deviation of a pixel, or scale of the logistic distribution, in units of
            [0, 1].
        inputs: of the refinement network, "authors" ([IE]) or "deepmind" ([DM]); see
            `emorl.models.iodine.inputs`.
        coordinates: of the "deepmind" inputs, "linear" or "cosine".
        encoder_layers: number of the refinement network's convolutions.
        encoder_kernel: their side.
        encoder_stride: of each.
        encoder_channels: of each.
        pooling: of their output, "flatten" (4x4 averages) or "mean".
        code_layers: linear layers that follow.
        code_width: their width.
        merge_width: of a hidden layer over image code and vectors; null for none ([DM]).
        lstm_width: of the LSTM; null for none.
        prior: "unit": standard normal slots, posterior variances softplus(raw) + 1e-5, which start
            with raw = 1 ([IE]); "softplus": variances softplus(raw), the prior's raw is 0, and the
            first posterior is drawn at random ([DM]).
        step_weights: weights of the I + 1 losses: "fractions" 1/(I+1), 2/(I+1), .., 1 ([IE]) or
            "linspace" 0, 1/I, .., 1 ([DM]; 1 where I = 0).
        init_gain: of the initial weights (Xavier normal), 0.02 in [IE]; null for [DM]'s.
        init_raw: of the first posterior, with the prior "unit"; 1 in [IE].
        convolution_backend: "native" demands it of the decoder's convolutions alone.
        keep_activations: keep those of all steps for the backward pass instead of running both
            networks again: less time, several times the memory, the same numbers.
        score_chunk: slots that are decoded, scored and encoded together, rounded down to those of
            whole images, at least one image; null takes the batch at once. The numbers stay the
            same, but the activations of one chunk alone are in memory.
    """

    POSITIVE = ("sigma", "init_gain")
    MAY_BE_ZERO = ("refinement_steps", "decoder_padding")

    image_size: tuple[int, int] = (96, 96)
    num_slots: int = 7
    refinement_steps: int = 4
    decoder_layers: int = 4
    decoder_kernel: int = 5
    decoder_padding: int = 1
    decoder_final_kernel: int = 1
    decoder_channels: int = 32
    decoder_constant: float | None = None
    rgb_activation: Literal["sigmoid", "none"] = "sigmoid"
    likelihood: MixtureKind = "mixture"
    sigma: float = 0.1
    inputs: Literal["authors", "deepmind"] = "authors"
    coordinates: Coordinates = "linear"
    encoder_layers: int = 3
    encoder_kernel: int = 5
    encoder_stride: int = 1
    encoder_channels: int = 32
    pooling: Pooling = "flatten"
    code_layers: int = 1
    code_width: int = 128
    merge_width: int | None = 128
    lstm_width: int | None = 128
    prior: Literal["unit", "softplus"] = "unit"
    step_weights: Literal["fractions", "linspace"] = "fractions"
    init_gain: float | None = RELEASED_GAIN
    init_raw: float = 1.0
    keep_activations: bool = False
    score_chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decoder_kernel", "decoder_final_kernel", "encoder_kernel"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd, got {getattr(self, name)}")
        if 2 * self.decoder_padding >= self.decoder_kernel:
            raise ValueError(
                f"decoder_padding must be less than half of decoder_kernel, {self.decoder_kernel}, "
                f"got {self.decoder_padding}"
            )
        if self.refinement.pooled(self.image_size) == 0:
            raise ValueError(
                f'image_size: pooling "flatten" expects sides of more than '
                f"{3 * self.encoder_stride**self.encoder_layers}, got {self.image_size}"
            )

    @property
    def decoder(self) -> BroadcastSpec:
        """The decoder's architecture."""
        return BroadcastSpec(
            layers=self.decoder_layers,
            kernel=self.decoder_kernel,
            padding=self.decoder_padding,
            final_padding=self.decoder_final_kernel // 2,
            channels=self.decoder_channels,
            activation="elu",
            final_kernel=self.decoder_final_kernel,
            coordinates=True,
        )

    @property
    def refinement(self) -> ImageRefinementSpec:
        """The refinement network's architecture."""
        return ImageRefinementSpec(
            layers=self.encoder_layers,
            kernel=self.encoder_kernel,
            stride=self.encoder_stride,
            channels=self.encoder_channels,
            pooling=self.pooling,
            code_layers=self.code_layers,
            code_width=self.code_width,
            merge_width=self.merge_width,
            lstm_width=self.lstm_width,
        )
