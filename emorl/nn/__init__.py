"""Building blocks of object-centric models, each usable alone."""

from emorl.nn.absorption import AbsorbedAttention, LinearFeatures
from emorl.nn.component_vae import ComponentVAE
from emorl.nn.decoder import DeconvolutionDecoder, SpatialBroadcastDecoder, make_decoder
from emorl.nn.encoder import ImageEncoder
from emorl.nn.gaussian import Gaussian, kl_divergence
from emorl.nn.gru import DualGRU, SingleGRU
from emorl.nn.hierarchy import HierarchicalPosterior, HierarchicalPrior
from emorl.nn.initial_slots import LearnedSlots, SampledSlots
from emorl.nn.noise import BatchShare, share_of, standard_normal
from emorl.nn.positions import PositionMap, position_ramps
from emorl.nn.precision import full_precision
from emorl.nn.refinement import RefinementNetwork
from emorl.nn.score import Score, score_once
from emorl.nn.slot_attention import SlotAttention, SlotIterations
from emorl.nn.unet import UNet

__all__ = [
    "AbsorbedAttention",
    "BatchShare",
    "ComponentVAE",
    "DeconvolutionDecoder",
    "DualGRU",
    "Gaussian",
    "HierarchicalPosterior",
    "HierarchicalPrior",
    "ImageEncoder",
    "LearnedSlots",
    "LinearFeatures",
    "PositionMap",
    "RefinementNetwork",
    "SampledSlots",
    "Score",
    "SingleGRU",
    "SlotAttention",
    "SlotIterations",
    "SpatialBroadcastDecoder",
    "UNet",
    "full_precision",
    "kl_divergence",
    "make_decoder",
    "position_ramps",
    "score_once",
    "share_of",
    "standard_normal",
]
