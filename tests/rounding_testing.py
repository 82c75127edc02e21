"""How far rounding may move the results of a module: measured on plain PyTorch, not set by hand.

Every weight and input is moved by one unit of the dtype, up or down by chance, and the module run
again: what changes is what the computation makes of a rounding of each operand, and of all those in
between, which come out anew. Another library or processor, with sums in another order, draws them
once more. Two draws differ by the sum of both errors, and the largest of many errors is seldom
twice as large in one as in the other: together `FACTOR`. Where a tensor is one number that is zero
but for rounding, the largest of the `DRAWS` errors is all there is: of 4 normal ones it lies below
half a standard deviation in one case of 50, of 16 in one of five million.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

FACTOR = 4.0
DRAWS = 16

Run = Callable[[nn.Module, Tensor], Sequence[Tensor]]


def errors_of(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """The largest error of each tensor."""
    assert [x.shape for x in found] == [x.shape for x in expected]
    pairs = zip(found, expected, strict=True)
    return [(x.detach().double() - y.detach().double()).abs().max().item() for x, y in pairs]


def rounding_of(
    run: Run, plain: nn.Module, inputs: Tensor, unit: float | None = None
) -> list[float]:
    """The largest error that rounding makes of each tensor that `run` gives.

    Of one tensor alone chance may find little: it is at least the share of the tensor's largest
    number that is the largest share of all. A tensor of which errors are a large part does not
    count there. It is zero but for rounding, such as the gradient of the queries' bias, on which no
    softmax over slots depends.

    Args:
        run: gives results of a module and inputs, always the same for the same.
        plain: in plain PyTorch.
        inputs: of it.
        unit: by which operands are moved; None for that of the dtype of `inputs`.
    """
    unit = torch.finfo(inputs.dtype).eps if unit is None else unit
    expected = run(copy.deepcopy(plain), inputs)  # a call may change a module
    generator, draws = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        moved = copy.deepcopy(plain)
        with torch.no_grad():
            for weight in moved.parameters():
                weight.copy_(_moved(weight, unit, generator))
            x = _moved(inputs, unit, generator)
        draws.append(errors_of(run(moved, x.requires_grad_(inputs.requires_grad)), expected))
    errors = [max(each) for each in zip(*draws, strict=True)]
    largest = [x.detach().abs().max().item() for x in expected]
    pairs = [*zip(errors, largest, strict=True)]
    share = max([unit, *(error / most for error, most in pairs if error < most / 8)])
    return [max(error, share * most) for error, most in pairs]


def _moved(x: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    up = torch.randint(0, 2, x.shape, generator=generator).to(x.dtype)
    return x.detach() * (1 + unit * (2 * up - 1))


def assert_rounded(
    found: Sequence[Tensor], expected: Sequence[Tensor], rounding: Sequence[float]
) -> None:
    """Assert that results differ by rounding alone, of which `rounding_of` tells the size."""
    for place, (error, one) in enumerate(zip(errors_of(found, expected), rounding, strict=True)):
        assert error <= FACTOR * one, f"{place}: error {error:.3g}, allowed {FACTOR * one:.3g}"
