"""Building blocks that several models share, each usable alone."""

from emorl.nn.absorption import AbsorbedAttention, LinearFeatures
from emorl.nn.decoder import DeconvolutionDecoder, SpatialBroadcastDecoder, make_decoder
from emorl.nn.encoder import ImageEncoder
from emorl.nn.gaussian import (
    BatchShare,
    Gaussian,
    SoftplusGaussian,
    kl_divergence,
    share_of,
    standard_normal,
)
from emorl.nn.positions import PositionMap, position_ramps
from emorl.nn.precision import full_precision
from emorl.nn.score import Score, score_once

__all__ = [
    "AbsorbedAttention",
    "BatchShare",
    "DeconvolutionDecoder",
    "Gaussian",
    "ImageEncoder",
    "LinearFeatures",
    "PositionMap",
    "Score",
    "SoftplusGaussian",
    "SpatialBroadcastDecoder",
    "full_precision",
    "kl_divergence",
    "make_decoder",
    "position_ramps",
    "score_once",
    "share_of",
    "standard_normal",
]
