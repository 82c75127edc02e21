"""Fused operators with a plain PyTorch reference each."""

from emorl.ops.convolution import convolution
from emorl.ops.extension import load_kernels
from emorl.ops.library import Backend, backends
from emorl.ops.mixture_nll import mixture_nll, mixture_nll_and_gradient
from emorl.ops.slot_attention import slot_attention
from emorl.ops.slot_iterations import slot_iterations
from emorl.ops.spatial_broadcast import spatial_broadcast

load_kernels()

__all__ = [
    "Backend",
    "backends",
    "convolution",
    "mixture_nll",
    "mixture_nll_and_gradient",
    "slot_attention",
    "slot_iterations",
    "spatial_broadcast",
]
