"""Sizes that fill no block, in storage that begins anywhere, in every dtype: for native kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from op_testing import DEVICE
from torch import Tensor

from benchmarks.cases import MixtureNllCase, SlotAttentionCase, SpatialBroadcastCase
from emorl.ops import mixture_nll, slot_attention, spatial_broadcast

Case = SlotAttentionCase | MixtureNllCase | SpatialBroadcastCase
WIDE, ALL = ("float32", "float64"), ("float32", "float64", "bfloat16", "float16")

# One slot and one more than 8, 16 and 32; a GPU's tile of 64 pixels and one more or less; widths
# that 4 divides, up to the largest, and others.
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


@dataclass(frozen=True)
class OddCase:
    """Inputs whose first elements lie `offset` elements from where memory is aligned."""

    sizes: Case
    dtype: torch.dtype
    offset: int

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{OPERATORS[type(self.sizes)]}-{self.sizes}-{name}-offset{self.offset}"

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
    SlotAttentionCase: "slot_attention",
    MixtureNllCase: "mixture_nll",
    SpatialBroadcastCase: "spatial_broadcast",
}


def odd_cases() -> list[OddCase]:
    """Every size in two dtypes, once at an aligned address and once at another."""
    cases = []
    for index, sizes in enumerate([*SLOT_ATTENTION, *MIXTURE_NLL, *SPATIAL_BROADCAST]):
        dtypes = WIDE if isinstance(sizes, SlotAttentionCase) else ALL
        for turn, offset in enumerate((0, 1 + index % 3)):
            dtype = dtypes[(index + turn) % len(dtypes)]
            cases.append(OddCase(sizes, getattr(torch, dtype), offset))
    return cases


def _at_offset(values: Tensor, offset: int) -> Tensor:
    """The same values with the same strides, so many elements further on in storage."""
    last = sum((size - 1) * step for size, step in zip(values.shape, values.stride(), strict=True))
    storage = torch.empty(offset + last + 1, dtype=values.dtype, device=values.device)
    return storage.as_strided(values.shape, values.stride(), offset).copy_(values)


def _call(sizes: Case, inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
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
