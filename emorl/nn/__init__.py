"""Building blocks of object-centric models, each usable alone."""

from emorl.nn.absorption import AbsorbedAttention, LinearFeatures
from emorl.nn.component_vae import ComponentVAE
from emorl.nn.decoder import DeconvolutionDecoder, SpatialBroadcastDecoder, make_decoder
from emorl.nn.encoder import ImageEncoder
from emorl.nn.gaussian import Gaussian, kl_divergence
from emorl.nn.gru import DualGRU, SingleGRU
from emorl.nn.hierarchy import HierarchicalPosterior, HierarchicalPrior
from emorl.nn.positions import PositionMap, position_ramps
from emorl.nn.refinement import RefinementNetwork
from emorl.nn.score import Score, score_once
from emorl.nn.unet import UNet

__all__ = [
    "AbsorbedAttention",
    "ComponentVAE",
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
    "UNet",
    "kl_divergence",
    "make_decoder",
    "position_ramps",
    "score_once",
]
