"""The optimisers: Adam or RMSProp for all parameters, or Muon for matrices and convolutions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7
_LONG = 32  # columns to a row, from where on two products with a matrix take less time than ten
_ADAM_RMS = 0.2

OptimizerName = Literal["adam", "muon", "rmsprop"]


def make_optimizers(
    parameters: Iterable[Tensor], name: OptimizerName, lr: float
) -> list[torch.optim.Optimizer]:
    """The optimisers of a model's parameters; "muon" leaves vectors (biases, norms) to Adam."""
    parameters = list(parameters)
    if name == "rmsprop":
        return [torch.optim.RMSprop(parameters, lr=lr)]
    matrices = [p for p in parameters if p.ndim > 1 and name == "muon"]
    taken = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in taken]
    adam = [torch.optim.Adam(rest, lr=lr, fused=True)] if rest else []
    return [*adam, Muon(matrices, lr=lr)] if matrices else [*adam]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised before the step (Jordan et al. 2024).

    All directions of a matrix move by the same amount, also those whose gradient is small; where
    Adam needs thousands of steps to break the symmetry between slots and to draw sharp outlines,
    this needs hundreds. A convolution [O, I, h, w] is the matrix [O, I h w].

    `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` and no weight decay takes the same
    steps, but takes no convolutions, and works in bfloat16, one matrix after the other: on a CPU
    that is many times slower than here, where matrices of one shape go together, in float32.

    Args:
        params: parameters of two or more dimensions, or groups of them.
        lr: learning rate; a step's root mean square is about 0.2 `lr`, Adam's (Liu et al. 2025).
        momentum: of the gradient's moving average, Nesterov's form.

    Raises:
        ValueError: if a parameter has fewer than two dimensions.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        shapes = [tuple(p.shape) for g in self.param_groups for p in g["params"] if p.ndim < 2]
        if shapes:
            raise ValueError(f"Muon: expected parameters of 2 or more dimensions, got {shapes}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Raises:
            ValueError: if there is a closure.
        """
        if closure is not None:
            raise ValueError("Muon.step: expected no closure")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._with_momentum(parameter, group["momentum"])
                    by_shape[update.shape].append((parameter, update))
            for shape, moves in by_shape.items():
                steps = orthogonalised(torch.stack([update for _, update in moves]))
                rate = group["lr"] * _ADAM_RMS * shape[1] ** 0.5
                for (parameter, _), step in zip(moves, steps, strict=True):
                    matrix = step if _is_wide(parameter) else step.mT
                    parameter.sub_(matrix.reshape(parameter.shape), alpha=rate)

    def _with_momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """The gradient's Nesterov average as a matrix of no more rows than columns."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["average"] = torch.zeros_like(gradient)
        average = state["average"].lerp_(gradient, 1 - momentum)
        matrix = gradient.lerp(average, momentum).flatten(1)
        return matrix if _is_wide(parameter) else matrix.mT


def _is_wide(parameter: Tensor) -> bool:
    return len(parameter) ** 2 <= parameter.numel()


def orthogonalised(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T, without a decomposition.

    Five Newton-Schulz iterations X <- a X + (b A + c A A) X with A = X X^T, with coefficients that
    bring singular values near 1 fast rather than exactly (Jordan et al. 2024). The factors of long
    matrices are multiplied with each other first.

    Args:
        matrices: [N, R, C], R <= C.

    Returns:
        [N, R, C]; zeros where a matrix is zero.
    """
    a, b, c = _COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + _EPS)
    if x.shape[2] >= _LONG * x.shape[1]:
        return _factor(x @ x.mT) @ x
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _factor(gram: Tensor) -> Tensor:
    """The product of all iterations' factors of X, [N, R, R], from A = X X^T alone.

    Every factor F = a + b A + c A A commutes with A, which F X turns into F A F.
    """
    a, b, c = _COEFFICIENTS
    one = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    product = one.expand_as(gram)
    for _ in range(_ITERATIONS):
        factor = a * one + torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        product = factor @ product
        gram = factor @ gram @ factor
    return product
