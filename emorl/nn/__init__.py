"""Building blocks that several models share, each usable alone."""

from emorl.nn.decoders import DeconvolutionDecoder, make_decoder
from emorl.nn.likelihoods import Mixture, MixtureLikelihood
from emorl.nn.networks import (
    AbsorbedAttention,
    BroadcastSpec,
    ImageEncoder,
    LinearFeatures,
    PositionMap,
    SpatialBroadcastDecoder,
    position_ramps,
)
from emorl.nn.posterior import (
    BatchNoise,
    BatchShare,
    Gaussian,
    Score,
    kl_divergence,
    score_once,
    share_of,
    standard_normal,
)
from emorl.nn.slot_attention import SlotAttention
from emorl.ops.library import full_precision

__all__ = [
    "AbsorbedAttention",
    "BatchNoise",
    "BatchShare",
    "BroadcastSpec",
    "DeconvolutionDecoder",
    "Gaussian",
    "ImageEncoder",
    "LinearFeatures",
    "Mixture",
    "MixtureLikelihood",
    "PositionMap",
    "Score",
    "SlotAttention",
    "SpatialBroadcastDecoder",
    "full_precision",
    "kl_divergence",
    "make_decoder",
    "position_ramps",
    "score_once",
    "share_of",
    "standard_normal",
]
