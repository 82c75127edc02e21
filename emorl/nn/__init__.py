"""Building blocks that several models share, each usable alone."""

from emorl.nn.decoder import DeconvolutionDecoder, SpatialBroadcastDecoder, make_decoder
from emorl.nn.encoder import AbsorbedAttention, ImageEncoder, LinearFeatures
from emorl.nn.gaussian import (
    BatchShare,
    Gaussian,
    SoftplusGaussian,
    kl_divergence,
    share_of,
    standard_normal,
)
from emorl.nn.positions import PositionMap, position_ramps
from emorl.nn.score import Score, score_once
from emorl.ops.library import full_precision

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
