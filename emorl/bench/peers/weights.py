"""Which weights of a peer's model are which of ours.

Pairs are (ours, theirs). Names differ from code to code; the order of the layers and the shapes of
their weights do not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Pairs = list[tuple[Tensor, Tensor]]
DEVIATION = 0.01


def in_order(ours: nn.Module, theirs: nn.Module) -> Pairs:
    """The n-th weight of a shape in a module, and the n-th of that shape in the other one."""
    waiting: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for weight in theirs.parameters():
        waiting[weight.shape].append(weight)
    return [
        (weight, waiting[weight.shape].pop(0))
        for weight in ours.parameters()
        if waiting[weight.shape]
    ]


@torch.no_grad()
def copy(pairs: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Give ours the values of theirs; the numbers that they are."""
    pairs = [*pairs]
    for ours, theirs in pairs:
        ours.copy_(theirs)
    return sum(ours.numel() for ours, _ in pairs)


def replaced(pairs: Pairs, ours: nn.Module, theirs: Tensor, name: str = "weight") -> Pairs:
    """The pairs, with another partner for the weight of that name of a layer of ours."""
    own = getattr(ours, name)
    return [(weight, theirs if weight is own else other) for weight, other in pairs]


@torch.no_grad()
def fix_spread(layer: Any, raw: float) -> None:
    """Let a layer that gives means and raw spreads give one spread for every image.

    Codes have different functions from the raw spread to a deviation. With weights of zero, and
    `raw` at which the deviation is `DEVIATION`, they agree; it is small, so that the order in which
    codes draw their noise is of no importance.
    """
    spread = len(layer.bias) // 2
    layer.weight[spread:] = 0.0
    layer.bias[spread:] = raw


def inverse_softplus(value: float) -> float:
    """The number whose softplus is `value`."""
    return math.log(math.expm1(value))
