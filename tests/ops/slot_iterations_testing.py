"""What the tests of `slot_iterations` share: modules of any sizes, and their results."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emorl.ops import slot_iterations
from emorl.ops.slot_iterations import IterationWeights

EPSILONS = {"eps": 1e-3, "norm_eps": 1e-4, "mlp_norm_eps": 1e-2}


class Case(NamedTuple):
    """Sizes; without a width of queries or values there is no `key` or `value`."""

    batch: int
    inputs: int
    channels: int
    slots: int
    width: int
    hidden: int
    queries: int | None = None
    values: int | None = None
    biases: bool = True
    iterations: int = 3
    seed: int = 0

    def weights(self) -> IterationWeights:
        """Drawn in float64, of a size that keeps the gates away from 0 and 1."""
        c, d, h = self.channels, self.width, self.hidden
        q, e = self.queries or c, self.values or c
        biases = self.biases
        return IterationWeights(
            norm_weight=1 + drawn(d),
            norm_bias=drawn(d),
            query=drawn(q, d),
            query_bias=drawn(q) if biases else None,
            key=drawn(q, c) if self.queries else None,
            logit=drawn(d) if biases else None,
            value=drawn(e, c) if self.values else None,
            weight_ih=drawn(3 * d, e),
            weight_hh=drawn(3 * d, d),
            bias_ih=drawn(3 * d),
            bias_hh=drawn(3 * d),
            mlp_norm_weight=1 + drawn(d),
            mlp_norm_bias=drawn(d),
            weight_in=drawn(h, d),
            bias_in=drawn(h),
            weight_out=drawn(d, h),
            bias_out=drawn(d),
        )

    def module(self) -> Iterated:
        torch.manual_seed(self.seed)
        return Iterated(self.weights(), drawn(self.batch, self.slots, self.width), self.iterations)

    def x(self, **options: Any) -> Tensor:
        torch.manual_seed(self.seed + 1)
        x = torch.randn(self.batch, self.inputs, self.channels, dtype=torch.float64)
        return x.to(**options).requires_grad_()


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64) / max(1, shape[-1]) ** 0.5


class Iterated(nn.Module):
    """The operator with weights and initial slots, which are parameters."""

    def __init__(self, weights: IterationWeights, slots: Tensor, iterations: int) -> None:
        super().__init__()
        self.slots, self.iterations = nn.Parameter(slots), iterations
        for name, value in weights._asdict().items():
            self.register_parameter(name, None if value is None else nn.Parameter(value))

    def weights(self) -> IterationWeights:
        return IterationWeights(*(getattr(self, name) for name in IterationWeights._fields))

    def forward(self, x: Tensor, backend: str) -> Tensor:
        options: dict[str, Any] = {**EPSILONS, "iterations": self.iterations, "backend": backend}
        return slot_iterations(x, self.slots, self.weights(), **options)


def run(m: Iterated, x: Tensor, backend: str = "reference") -> list[Tensor]:
    """All slots, and the gradients of a sum in which each counts differently."""
    y = m(x, backend)
    counted = torch.linspace(-1, 2, y.numel()).to(y).view_as(y)
    return [y, *torch.autograd.grad((y * counted).sum(), [x, *m.parameters()])]
