"""Building blocks of object-centric models, each usable alone."""

from emorl.nn.absorption import AbsorbedAttention, LinearFeatures
from emorl.nn.component_vae import ComponentVAE
from emorl.nn.decoder import DeconvolutionDecoder, SpatialBroadcastDecoder, make_decoder
from emorl.nn.encoder import ImageEncoder
from emorl.nn.gaussian import Gaussian, SoftplusGaussian, kl_divergence
from emorl.nn.gru import DualGRU, SingleGRU
from emorl.nn.hierarchy import HierarchicalPosterior, HierarchicalPrior
from emorl.nn.image_refinement import ImageRefinement, ImageRefinementSpec
from emorl.nn.initial_slots import LearnedSlots, SampledSlots
from emorl.nn.likelihood import likelihood_and_gradient, log_components, mixture_likelihood
from emorl.nn.noise import BatchShare, share_of, standard_normal
from emorl.nn.pixel_inputs import AuthorsInputs, DeepMindInputs
from emorl.nn.positions import PositionMap, position_ramps
from emorl.nn.precision import full_precision
from emorl.nn.refinement import RefinementNetwork
from emorl.nn.score import Score, score_once
from emorl.nn.score_decoded import DecodedScore, score_decoded
from emorl.nn.slot_attention import SlotAttention, SlotIterations
from emorl.nn.unet import UNet

__all__ = [
    "AbsorbedAttention",
    "AuthorsInputs",
    "BatchShare",
    "ComponentVAE",
    "DecodedScore",
    "DeconvolutionDecoder",
    "DeepMindInputs",
    "DualGRU",
    "Gaussian",
    "HierarchicalPosterior",
    "HierarchicalPrior",
    "ImageEncoder",
    "ImageRefinement",
    "ImageRefinementSpec",
    "LearnedSlots",
    "LinearFeatures",
    "PositionMap",
    "RefinementNetwork",
    "SampledSlots",
    "Score",
    "SingleGRU",
    "SlotAttention",
    "SlotIterations",
    "SoftplusGaussian",
    "SpatialBroadcastDecoder",
    "UNet",
    "full_precision",
    "kl_divergence",
    "likelihood_and_gradient",
    "log_components",
    "make_decoder",
    "mixture_likelihood",
    "position_ramps",
    "score_decoded",
    "score_once",
    "share_of",
    "standard_normal",
]
