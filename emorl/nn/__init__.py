"""Building blocks of object-centric models, each usable alone."""

from emorl.nn.absorption import AbsorbedAttention, LinearFeatures
from emorl.nn.decoder import DeconvolutionDecoder, SpatialBroadcastDecoder, make_decoder
from emorl.nn.encoder import ImageEncoder
from emorl.nn.gaussian import Gaussian, kl_divergence
from emorl.nn.gru import DualGRU, SingleGRU
from emorl.nn.hierarchy import HierarchicalPosterior, HierarchicalPrior
from emorl.nn.noise import BatchShare, share_of, standard_normal
from emorl.nn.positions import PositionMap, position_ramps
from emorl.nn.precision import full_precision
from emorl.nn.refinement import RefinementNetwork
from emorl.nn.score import Score, score_once

__all__ = [
    "AbsorbedAttention",
    "BatchShare",
    "DeconvolutionDecoder",
    "DualGRU",
    "Gaussian",
    "HierarchicalPosterior",
    "HierarchicalPrior",
    "ImageEncoder",
    "LinearFeatures",
    "PositionMap",
    "RefinementNetwork",
    "Score",
    "SingleGRU",
    "SpatialBroadcastDecoder",
    "full_precision",
    "kl_divergence",
    "make_decoder",
    "position_ramps",
    "score_once",
    "share_of",
    "standard_normal",
]
