"""The configuration of EfficientMORL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emorl.models.config import ModelConfig
from emorl.models.efficient_morl.hierarchy import GRUKind, PriorKind
from emorl.nn.decoders import DecoderKind
from emorl.nn.initialisation import RELEASED_GAIN
from emorl.nn.networks import Activation
from emorl.ops.mixture_nll import Likelihood


@dataclass(kw_only=True)
class EfficientMORLConfig(ModelConfig):
    """Architecture and objective of EfficientMORL; image size and slots are free at call time.

    Attributes:
        stochastic_layers: L; 0 leaves refinement alone.
        refinement_steps: I; another number can be given at call time.
        encoder_channels: width of the image encoder.
        encoder_layers: number of the encoder's convolutions.
        decoder: "iodine", "small" or "big" (image sizes that are multiples of 16).
        decoder_channels: width of the decoder; null for the published one.
        decoder_activation: "elu" or "relu"; null for the published one.
        likelihood: "gaussian" or "mixture" (per channel).
        sigma: standard deviation of a pixel, in units of [0, 1].
        prior: "reversed++", "reversed" or "bottom_up".
        gru: "dual" or "single" (ablation).
        refinement_weighting: weights of the refined losses, "released" or "paper" (equation 8).
        init_gain: of the initial weights (Xavier normal) of encoder, decoder and attention
            projections; 0.02 as released, at which little is learnt for thousands of steps.
        init_position_gain: further gain of the decoder's initial position map. With 2 to
            4, slots part from each other sooner; at 4 some divide objects by place for long.
        init_raw_bias: initial bias of every layer's raw variance; 0 as released, at which samples
            are mostly noise at first. -3 starts with a standard deviation of about 0.2.
        score_chunk: slots that are decoded and scored together, rounded down to those of whole
            images, at least one image; null takes the batch at once. The numbers stay the same,
            but the activations of one chunk alone are in memory.
    """

    MAY_BE_ZERO = ("stochastic_layers", "refinement_steps")
    POSITIVE = ("sigma", "init_gain", "init_position_gain")

    num_slots: int = 4
    stochastic_layers: int = 3
    refinement_steps: int = 3
    encoder_channels: int = 64
    encoder_layers: int = 4
    decoder: DecoderKind = "iodine"
    decoder_channels: int | None = None
    decoder_activation: Activation | None = None
    likelihood: Likelihood = "gaussian"
    sigma: float = 0.1
    prior: PriorKind = "reversed++"
    gru: GRUKind = "dual"
    refinement_weighting: Literal["released", "paper"] = "released"
    init_gain: float = RELEASED_GAIN
    init_position_gain: float = 1.0
    init_raw_bias: float = 0.0
    score_chunk: int | None = None
