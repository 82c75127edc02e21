"""Sizes that fill no block, in storage that begins anywhere, in every dtype: for native kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from op_testing import DEVICE
from torch import Tensor

from emorl.bench.cases.convolution import ConvolutionCase
from emorl.bench.cases.mixture_nll import MixtureNllCase
from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.bench.cases.spatial_broadcast import SpatialBroadcastCase
from emorl.ops import convolution, library, mixture_nll, slot_attention, spatial_broadcast
from emorl.ops.convolution import _limit_on_cpu

Case = ConvolutionCase | SlotAttentionCase | MixtureNllCase | SpatialBroadcastCase
DTYPES = ("float32", "float64", "bfloat16", "float16")

# One slot and one more than 8, 16 and 32; a GPU's tile of 64 pixels and one more or less, and
# no pixel; widths that 4 divides, up to the largest, and others.
SLOT_ATTENTION = [
    SlotAttentionCase(2, 1, 1, 1, 1),
    SlotAttentionCase(1, 1, 1, 4, 4),
    SlotAttentionCase(2, 8, 64, 4, 4),
    SlotAttentionCase(1, 9, 65, 8, 12),
    SlotAttentionCase(1, 16, 129, 64),
    SlotAttentionCase(1, 17, 63, 64, 128),
    SlotAttentionCase(1, 33, 70, 128),
    SlotAttentionCase(1, 64, 130, 100, 128),
    SlotAttentionCase(1, 64, 33, 3, 127),
    SlotAttentionCase(1, 40, 40, 127, 2),
    SlotAttentionCase(2, 3, 4, 124, 1),
    SlotAttentionCase(3, 5, 700, 16),
    SlotAttentionCase(2, 3, 0, 4, 8),
]
MIXTURE_NLL = [
    MixtureNllCase(batch, slots, height, width, channels, kind, layout)
    for batch, slots, height, width, channels in (
        (2, 1, 1, 1, 3),
        (3, 2, 7, 5, 1),
        (1, 7, 7, 37, 3),
        (2, 33, 1, 5, 8),
        (1, 64, 7, 19, 3),
    )
    for kind, layout in (("gaussian", "first"), ("mixture", "last"), ("mixture_joint", "last"))
]
SPATIAL_BROADCAST = [
    SpatialBroadcastCase(slots, channels, height, width, activation, border, last)
    for slots, channels, height, width, border in (
        (1, 4, 2, 2, True),
        (3, 8, 5, 1, False),
        (2, 63, 3, 9, True),
        (2, 64, 33, 7, True),
        (5, 128, 4, 4, False),
        (3, 260, 2, 3, True),
        (70, 4, 2, 3, True),
        (1, 1, 50, 50, False),
        (4, 12, 1, 1, False),
    )
    for activation, last in (("elu", True), ("relu", False), ("none", True))
]

# Any sizes on a GPU, packs of channels or pixels and what is not a multiple of them; the CPU's
# kernels take channels in multiples of 16. ReLU has no bias: what is rounded before one is added
# may end on the other side of 0, with another slope.
CONVOLUTION = [
    ConvolutionCase(*sizes, activation, biased, last)
    for sizes in (
        (3, 3, 5, 6, 7, 3, 1),
        (2, 2, 40, 9, 8, 1, 0),
        (9, 1, 1, 5, 5, 4, 2),
        (1, 2, 264, 5, 4, 3, 1),
        (2, 16, 48, 13, 7, 5, 2),
    )
    for activation, biased, last in (
        ("elu", True, True),
        ("relu", False, False),
        ("none", True, True),
        ("elu", True, False),
    )
]


@dataclass(frozen=True)
class OddCase:
    """Inputs whose first elements lie `offset` elements from where memory is aligned."""

    sizes: Case
    dtype: torch.dtype
    offset: int

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.operator}-{self.sizes}-{name}-offset{self.offset}"

    @property
    def operator(self) -> str:
        return OPERATORS[type(self.sizes)]

    def beyond(self, inputs: dict[str, Tensor]) -> str | None:
        """Why the native kernels do not take this case, if they do not."""
        if not isinstance(self.sizes, ConvolutionCase) or library.on_gpu(inputs["x"]):
            return None
        return _limit_on_cpu(inputs["x"], inputs["weight"], self.sizes.padding, stride=1)

    def inputs(self) -> dict[str, Tensor]:
        given = self.sizes.inputs(self.dtype, DEVICE)
        return {
            name: _at_offset(x.detach(), self.offset).requires_grad_(x.requires_grad)
            for name, x in given.items()
        }

    def results(self, inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        """Results, and the gradient of a weighted sum of them for each input that has one."""
        outputs = _call(self.sizes, inputs, backend)
        first = next(iter(outputs.values()))
        leaves = {name: x for name, x in inputs.items() if x.requires_grad}
        weights = torch.arange(first.numel()).view_as(first).cos().to(first)
        grads = torch.autograd.grad((first * weights).sum(), list(leaves.values()))
        named = {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return {**{name: x.detach() for name, x in outputs.items()}, **named}


OPERATORS = {
    ConvolutionCase: "convolution",
    SlotAttentionCase: "slot_attention",
    MixtureNllCase: "mixture_nll",
    SpatialBroadcastCase: "spatial_broadcast",
}


LARGEST = SlotAttentionCase(1, 64, 5, 256, 256)  # in float32 alone
SIZES: list[Case] = [*CONVOLUTION, *SLOT_ATTENTION, *MIXTURE_NLL, *SPATIAL_BROADCAST]


def odd_cases() -> list[OddCase]:
    """Every size in two dtypes, once at an aligned address and once at another."""
    cases = []
    for index, sizes in enumerate(SIZES):
        for turn, offset in enumerate((0, 1 + index % 3)):
            dtype = DTYPES[(index + turn) % len(DTYPES)]
            cases.append(OddCase(sizes, getattr(torch, dtype), offset))
    return [*cases, *(OddCase(LARGEST, torch.float32, offset) for offset in (0, 1))]


def _at_offset(values: Tensor, offset: int) -> Tensor:
    """The same values with the same strides, so many elements further on in storage."""
    last = sum((size - 1) * step for size, step in zip(values.shape, values.stride(), strict=True))
    storage = torch.empty(offset + last + 1, dtype=values.dtype, device=values.device)
    return storage.as_strided(values.shape, values.stride(), offset).copy_(values)


def _call(sizes: Case, inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    if isinstance(sizes, ConvolutionCase):
        return {"output": convolution(**inputs, **sizes.options(), backend=backend)}
    if isinstance(sizes, SpatialBroadcastCase):
        slot, position = inputs["slot"], inputs["position"]
        output = spatial_broadcast(slot, position, activation=sizes.activation, backend=backend)
        return {"output": output}
    if isinstance(sizes, MixtureNllCase):
        image, rgb, mask_logits = (inputs[name] for name in ("image", "rgb", "mask_logits"))
        nll = mixture_nll(image, rgb, mask_logits, sigma=0.1, kind=sizes.kind, backend=backend)
        return {"nll": nll}
    mask = torch.arange(sizes.batch * sizes.slots, device=DEVICE) % 3 != 1
    updates, attention = slot_attention(
        inputs["q"],
        inputs["k"],
        inputs.get("v", inputs["k"]),
        logit_bias=inputs["logit_bias"],
        slot_mask=mask.view(sizes.batch, sizes.slots) if sizes.slots % 2 else None,
        return_attention=True,
        backend=backend,
    )
    return {"updates": updates, "attention": attention}
