"""Operators for benchmarks: calls, plain PyTorch forms, and the least work and memory traffic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emorl.bench.cases.convolution import CONVOLUTION_BATCH_32, CONVOLUTION_TIMED, ConvolutionCase
from emorl.bench.cases.mixture_nll import (
    MIXTURE_NLL_AND_GRADIENT_BATCH_32,
    MIXTURE_NLL_AND_GRADIENT_TIMED,
    MIXTURE_NLL_BATCH_32,
    MIXTURE_NLL_TIMED,
    JoinedMixtureNllCase,
    MixtureNllCase,
)
from emorl.bench.cases.slot_attention import (
    SLOT_ATTENTION_BATCH_32,
    SLOT_ATTENTION_TIMED,
    SLOT_ATTENTION_WIDTHS,
    SlotAttentionCase,
)
from emorl.bench.cases.spatial_broadcast import SPATIAL_BROADCAST_BATCH_32, SPATIAL_BROADCAST_TIMED
from emorl.bench.ops import attention, operations
from emorl.bench.passes import BOTH, FORWARD, PARTS
from emorl.ops import (
    Backend,
    convolution,
    mixture_nll,
    mixture_nll_and_gradient,
    slot_attention,
    spatial_broadcast,
)
from emorl.ops.convolution import reference as plain_convolution
from emorl.ops.mixture_nll import reference as plain_mixture_nll
from emorl.ops.slot_attention import reference as plain_slot_attention
from emorl.ops.spatial_broadcast import reference as plain_spatial_broadcast

Inputs = dict[str, Tensor]


class Results(NamedTuple):
    """Results of a call: the output and, after a backward pass, the gradients of the leaves."""

    output: Tensor
    gradients: Sequence[Tensor]

    def named(self) -> dict[str, Tensor]:
        """The results in float64, by the names that the accuracy check expects."""
        gradients = {f"grad_{i}": x.double() for i, x in enumerate(self.gradients)}
        return {"output": self.output.double(), **gradients}


Function = Callable[[Inputs], Tensor | Results]


@dataclass(frozen=True)
class Operator:
    """`fused(case, inputs, backend)` and `plain(case, inputs)` compute the same tensor.

    Attributes:
        kernels: name of its kernels in `emorl.ops.backends()`.
        cases: timed on the CPU, in the order of their importance.
        batch_32: timed on a GPU, likewise.
        fused: the operator; gives `Results` where the gradient comes with the value.
        plain: its plain PyTorch form.
        operations: of a case, in the forward pass; both passes have three times as many.
        rivals: other forms than the plain one, by their names.
        parts: what is timed.
        reads: how often the inputs must be read in a forward and a backward pass together.
        outputs: how often the output, or a tensor of its size, moves in both passes together:
            written, its gradient read, and read where it tells the activation's slope.
        products: how many products are summed in each result, if they are many.
    """

    kernels: str
    cases: list[Any]
    batch_32: list[Any]
    fused: Callable[[Any, Inputs, Backend], Tensor | Results]
    plain: Callable[[Any, Inputs], Tensor]
    operations: Callable[[Any], int]
    rivals: Mapping[str, Callable[[Any, Inputs], Tensor]] = field(default_factory=dict)
    parts: tuple[str, ...] = PARTS
    reads: int = 2
    outputs: int = 2
    products: Callable[[Any], Sequence[int]] | None = None

    def bytes_moved(self, inputs: Inputs, output: Tensor, gradients: Sequence[Tensor]) -> int:
        """The fewest bytes that have to move through memory.

        Forward: each input is read, the output written. With `gradients`, these are written; the
        inputs are read `reads` times in all, and tensors like the output moved `outputs` times.
        """
        read = sum(x.nbytes for x in inputs.values()) * (self.reads if gradients else 1)
        of_output = output.nbytes * (self.outputs if gradients else 1)
        return read + of_output + sum(x.nbytes for x in gradients)


def call(function: Function, inputs: Inputs, part: str) -> Results:
    """The work that is timed: "forward", or "forward+backward" from a gradient of ones."""
    with torch.set_grad_enabled(part == BOTH):
        output = function(inputs)
    if isinstance(output, Results):
        return output
    if part == FORWARD:
        return Results(output, ())
    leaves = [x for x in inputs.values() if x.requires_grad]
    gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
    return Results(output.detach(), gradients)


def _slot_attention(case: SlotAttentionCase, inputs: Inputs, backend: Backend) -> Tensor:
    v = inputs.get("v", inputs["k"])
    return slot_attention(
        inputs["q"], inputs["k"], v, logit_bias=inputs["logit_bias"], backend=backend
    )


def _plain_slot_attention(case: SlotAttentionCase, inputs: Inputs) -> Tensor:
    v = inputs.get("v", inputs["k"])
    return plain_slot_attention(inputs["q"], inputs["k"], v, inputs["logit_bias"])[0]


def _attended_slots(case: SlotAttentionCase, inputs: Inputs) -> Tensor:
    v = inputs.get("v", inputs["k"])
    return attention.slot_attention(inputs["q"], inputs["k"], v, inputs["logit_bias"])


def _mixture_nll(case: MixtureNllCase, inputs: Inputs, backend: Backend) -> Tensor:
    return mixture_nll(*inputs.values(), **case.options(), backend=backend)


def _plain_mixture_nll(case: MixtureNllCase, inputs: Inputs) -> Tensor:
    return plain_mixture_nll(*inputs.values(), **case.options())


def _mixture_nll_and_gradient(
    case: JoinedMixtureNllCase, inputs: Inputs, backend: Backend
) -> Results:
    options = case.options()
    nll, gradient = mixture_nll_and_gradient(
        inputs["image"], inputs["decoded"], scale=1.0, **options, backend=backend
    )
    return Results(nll, (gradient,))


def _plain_joined_mixture_nll(case: JoinedMixtureNllCase, inputs: Inputs) -> Tensor:
    decoded = inputs["decoded"]
    return plain_mixture_nll(
        inputs["image"], decoded[:, :, :-1], decoded[:, :, -1:], **case.options()
    )


def _convolution(case: ConvolutionCase, inputs: Inputs, backend: Backend) -> Tensor:
    return convolution(*inputs.values(), **case.options(), backend=backend)


def _plain_convolution(case: ConvolutionCase, inputs: Inputs) -> Tensor:
    return plain_convolution(inputs["x"], inputs["weight"], inputs.get("bias"), **case.options())


OPERATORS = {
    "slot_attention": Operator(
        "slot_attention",
        [*SLOT_ATTENTION_TIMED, *SLOT_ATTENTION_WIDTHS],
        [*SLOT_ATTENTION_BATCH_32, *SLOT_ATTENTION_WIDTHS],
        _slot_attention,
        _plain_slot_attention,
        operations.slot_attention,
        rivals={"sdpa": _attended_slots},
        products=SlotAttentionCase.products,
    ),
    "mixture_nll": Operator(
        "mixture_nll",
        MIXTURE_NLL_TIMED,
        MIXTURE_NLL_BATCH_32,
        _mixture_nll,
        _plain_mixture_nll,
        operations.mixture_nll,
        reads=1,  # a gradient of the inputs needs nothing but them
    ),
    "mixture_nll_and_gradient": Operator(
        "mixture_nll",
        MIXTURE_NLL_AND_GRADIENT_TIMED,
        MIXTURE_NLL_AND_GRADIENT_BATCH_32,
        _mixture_nll_and_gradient,
        _plain_joined_mixture_nll,
        operations.mixture_nll,
        parts=(BOTH,),
        reads=1,
        outputs=1,  # its gradient is a number known beforehand
    ),
    "spatial_broadcast": Operator(
        "spatial_broadcast",
        SPATIAL_BROADCAST_TIMED,
        SPATIAL_BROADCAST_BATCH_32,
        lambda case, inputs, backend: spatial_broadcast(
            **inputs, activation=case.activation, backend=backend
        ),
        lambda case, inputs: plain_spatial_broadcast(**inputs, activation=case.activation),
        operations.spatial_broadcast,
        outputs=3,
    ),
    "convolution": Operator(
        "convolution",
        CONVOLUTION_TIMED,
        CONVOLUTION_BATCH_32,
        _convolution,
        _plain_convolution,
        operations.convolution,
        outputs=3,
        products=ConvolutionCase.products,
    ),
}
