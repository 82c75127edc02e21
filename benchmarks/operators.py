"""How each operator is called on its timed cases, and its plain PyTorch form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks import cases
from emorl.ops import mixture_nll, slot_attention, spatial_broadcast
from emorl.ops.mixture_nll import reference as plain_mixture_nll
from emorl.ops.slot_attention import reference as plain_slot_attention
from emorl.ops.spatial_broadcast import reference as plain_spatial_broadcast

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Operator:
    """`fused(case, inputs, backend)` and `plain(case, inputs)` compute the same tensor."""

    cases: list[Any]
    fused: Callable[[Any, Inputs, Any], Tensor]
    plain: Callable[[Any, Inputs], Tensor]


def _slot_attention(case: cases.SlotAttentionCase, inputs: Inputs, backend: Any) -> Tensor:
    v = inputs.get("v", inputs["k"])
    return slot_attention(
        inputs["q"], inputs["k"], v, logit_bias=inputs["logit_bias"], backend=backend
    )


def _plain_slot_attention(case: cases.SlotAttentionCase, inputs: Inputs) -> Tensor:
    v = inputs.get("v", inputs["k"])
    return plain_slot_attention(inputs["q"], inputs["k"], v, inputs["logit_bias"])[0]


OPERATORS = {
    "slot_attention": Operator(cases.SLOT_ATTENTION_TIMED, _slot_attention, _plain_slot_attention),
    "mixture_nll": Operator(
        cases.MIXTURE_NLL_TIMED,
        lambda case, inputs, backend: mixture_nll(**inputs, **case.options(), backend=backend),
        lambda case, inputs: plain_mixture_nll(**inputs, **case.options()),
    ),
    "spatial_broadcast": Operator(
        cases.SPATIAL_BROADCAST_TIMED,
        lambda case, inputs, backend: spatial_broadcast(
            **inputs, activation=case.activation, backend=backend
        ),
        lambda case, inputs: plain_spatial_broadcast(**inputs, activation=case.activation),
    ),
}
