"""How each operator is called on its timed cases, its plain PyTorch form, and its fewest bytes.

python -m emorl.bench.operators --device cuda     one call of each native form, for a profiler
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emorl.bench import cases
from emorl.ops import mixture_nll, slot_attention, spatial_broadcast
from emorl.ops.mixture_nll import reference as plain_mixture_nll
from emorl.ops.slot_attention import reference as plain_slot_attention
from emorl.ops.spatial_broadcast import reference as plain_spatial_broadcast

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Operator:
    """`fused(case, inputs, backend)` and `plain(case, inputs)` compute the same tensor.

    Attributes:
        cases: timed on the CPU.
        batch_32: timed on a GPU.
        reads: how often the inputs must be read in a forward and a backward pass together.
        outputs: how often the output, or a tensor of its size, moves in both passes together:
            written, its gradient read, and read where it tells the activation's slope.
    """

    cases: list[Any]
    batch_32: list[Any]
    fused: Callable[[Any, Inputs, Any], Tensor]
    plain: Callable[[Any, Inputs], Tensor]
    reads: int = 2
    outputs: int = 2

    def bytes_moved(self, inputs: Inputs, output: Tensor, gradients: Sequence[Tensor]) -> int:
        """The fewest bytes that have to move through memory.

        Forward: each input is read, the output written. With `gradients`, these are written; the
        inputs are read `reads` times in all, and tensors like the output moved `outputs` times.
        """
        read = sum(x.nbytes for x in inputs.values()) * (self.reads if gradients else 1)
        of_output = output.nbytes * (self.outputs if gradients else 1)
        return read + of_output + sum(x.nbytes for x in gradients)


def _slot_attention(case: cases.SlotAttentionCase, inputs: Inputs, backend: Any) -> Tensor:
    v = inputs.get("v", inputs["k"])
    return slot_attention(
        inputs["q"], inputs["k"], v, logit_bias=inputs["logit_bias"], backend=backend
    )


def _plain_slot_attention(case: cases.SlotAttentionCase, inputs: Inputs) -> Tensor:
    v = inputs.get("v", inputs["k"])
    return plain_slot_attention(inputs["q"], inputs["k"], v, inputs["logit_bias"])[0]


def _mixture_nll(case: cases.MixtureNllCase, inputs: Inputs, backend: Any) -> Tensor:
    return mixture_nll(*inputs.values(), **case.options(), backend=backend)


def _plain_mixture_nll(case: cases.MixtureNllCase, inputs: Inputs) -> Tensor:
    return plain_mixture_nll(*inputs.values(), **case.options())


OPERATORS = {
    "slot_attention": Operator(
        cases.SLOT_ATTENTION_TIMED,
        cases.SLOT_ATTENTION_BATCH_32,
        _slot_attention,
        _plain_slot_attention,
    ),
    "mixture_nll": Operator(
        cases.MIXTURE_NLL_TIMED,
        cases.MIXTURE_NLL_BATCH_32,
        _mixture_nll,
        _plain_mixture_nll,
        reads=1,  # a gradient of the inputs needs nothing but them
    ),
    "spatial_broadcast": Operator(
        cases.SPATIAL_BROADCAST_TIMED,
        cases.SPATIAL_BROADCAST_BATCH_32,
        lambda case, inputs, backend: spatial_broadcast(
            **inputs, activation=case.activation, backend=backend
        ),
        lambda case, inputs: plain_spatial_broadcast(**inputs, activation=case.activation),
        outputs=3,
    ),
}


def main() -> None:
    """Run every native operator once, forward and backward, on the cases of its device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    device = parser.parse_args().device
    for operator in OPERATORS.values():
        for case in operator.batch_32 if device == "cuda" else operator.cases[-1:]:
            inputs = case.inputs(torch.float32, device)
            operator.fused(case, inputs, "native").sum().backward()


if __name__ == "__main__":
    main()
