"""The inputs on which operators are tested and timed, a module each: one table for both."""

from emorl.bench.cases.convolution import (
    CONVOLUTION_BATCH_32,
    CONVOLUTION_TIMED,
    ConvolutionCase,
)
from emorl.bench.cases.mixture_nll import (
    MIXTURE_NLL,
    MIXTURE_NLL_AND_GRADIENT_BATCH_32,
    MIXTURE_NLL_AND_GRADIENT_TIMED,
    MIXTURE_NLL_BATCH_32,
    MIXTURE_NLL_TIMED,
    JoinedMixtureNllCase,
    MixtureNllCase,
)
from emorl.bench.cases.slot_attention import (
    SLOT_ATTENTION,
    SLOT_ATTENTION_BATCH_32,
    SLOT_ATTENTION_TIMED,
    SlotAttentionCase,
)
from emorl.bench.cases.spatial_broadcast import (
    SPATIAL_BROADCAST,
    SPATIAL_BROADCAST_BATCH_32,
    SPATIAL_BROADCAST_TIMED,
    SpatialBroadcastCase,
)

__all__ = [
    "CONVOLUTION_BATCH_32",
    "CONVOLUTION_TIMED",
    "MIXTURE_NLL",
    "MIXTURE_NLL_AND_GRADIENT_BATCH_32",
    "MIXTURE_NLL_AND_GRADIENT_TIMED",
    "MIXTURE_NLL_BATCH_32",
    "MIXTURE_NLL_TIMED",
    "SLOT_ATTENTION",
    "SLOT_ATTENTION_BATCH_32",
    "SLOT_ATTENTION_TIMED",
    "SPATIAL_BROADCAST",
    "SPATIAL_BROADCAST_BATCH_32",
    "SPATIAL_BROADCAST_TIMED",
    "ConvolutionCase",
    "JoinedMixtureNllCase",
    "MixtureNllCase",
    "SlotAttentionCase",
    "SpatialBroadcastCase",
]
