"""Floating-point operations of the operators' forward passes, by formulas of their sizes.

A multiply-accumulate is two operations; an exponential, a logarithm and a division are one each.
Both passes together have three times as many, as is customary (`emorl.macs`). What a form does
otherwise does not count: Winograd's fewer products, or an attention that is computed again.
"""

from __future__ import annotations

from emorl.bench.cases.convolution import ConvolutionCase
from emorl.bench.cases.mixture_nll import MixtureNllCase
from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.bench.cases.spatial_broadcast import SpatialBroadcastCase

BOTH_PASSES = 3  # times the forward pass

_SIGMOID, _SOFTMAX = 3, 3  # a number's: exp, sum, division
_ERROR = 3  # difference, square, scale


def slot_attention(case: SlotAttentionCase) -> int:
    """Those of the two products, beside which the softmax is small."""
    width = case.key_width + (case.value_width or case.key_width)
    return 2 * case.batch * case.slots * case.pixels * width


def convolution(case: ConvolutionCase) -> int:
    """Those of the products, as the definition has them."""
    rim = 2 * case.padding - case.kernel + 1
    pixels = case.batch * (case.height + rim) * (case.width + rim)
    return 2 * pixels * case.out_channels * case.channels * case.kernel**2


def spatial_broadcast(case: SpatialBroadcastCase) -> int:
    """A sum and an activation for each number of the result."""
    return 2 * case.slots * case.channels * case.height * case.width


def mixture_nll(case: MixtureNllCase) -> int:
    """A sigmoid for each colour, a softmax for each mask, and what the likelihood makes of them.

    Gaussian: a mean of slots for each colour, and its error. Mixture: an error for each slot and
    colour, added to the mask's logarithm, and a logarithm of the slots' sum for each colour; with
    "mixture_joint" errors are added over colours first.
    """
    slots, colours = case.slots, case.channels
    of_pixel = slots * (_SOFTMAX + colours * _SIGMOID)
    if case.kind == "gaussian":
        of_pixel += colours * (2 * slots + _ERROR + 1)
    else:
        apart = colours if case.kind == "mixture" else 1
        of_pixel += slots * (_ERROR * colours + (colours - apart) + 3 * apart) + 2 * apart
    return case.batch * case.height * case.width * of_pixel
