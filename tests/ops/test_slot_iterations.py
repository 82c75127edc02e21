"""Slot attention's iterations as an operator: against the plain form, opcheck, its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_testing import unwritten_outputs_are_nan  # noqa: F401
from rounding_testing import assert_rounded, rounding_of
from slot_iterations_testing import EPSILONS, Case, run
from torch import Tensor, nn
from torch.library import opcheck

from emorl.ops import backends, slot_iterations
from emorl.ops.slot_iterations import IterationWeights

OBSTACLE = backends()["slot_iterations"]["native"]
needs_native = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
OP, OP_BACKWARD = (getattr(torch.ops.emorl, f"slot_iterations{x}") for x in ("", "_backward"))


# One number; one less and one more than a vector; rows in several blocks; narrow and wide queries
CASES = [
    Case(1, 1, 1, 1, 1, 1, iterations=1),
    Case(2, 5, 7, 3, 9, 15, queries=4, values=6),
    Case(3, 33, 16, 2, 8, 17, values=5),
    Case(2, 9, 8, 7, 33, 40, queries=16, biases=False),
    Case(5, 70, 24, 13, 16, 3, biases=False, iterations=2),
]


@needs_native
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_plain_form_in_float64(case: Case) -> None:
    m, x = case.module(), case.x()
    for found, expected in zip(run(m, x, "native"), run(m, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@needs_native
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rounds_as_the_plain_form(case: Case) -> None:
    m, x = case.module().float(), case.x(dtype=torch.float32)
    assert_rounded(run(m, x, "native"), run(m, x), rounding_of(run, m, x))


@needs_native
def test_gradients_are_those_of_finite_differences() -> None:
    case = Case(1, 3, 2, 2, 3, 2, queries=2, values=2, iterations=2)
    m, x = case.module(), case.x()
    given = [y for y in m.weights() if y is not None]

    def call(x: Tensor, slots: Tensor, *weights: Tensor) -> Tensor:
        return slot_iterations(x, slots, IterationWeights(*weights), **EPSILONS, iterations=2)

    assert torch.autograd.gradcheck(call, (x, m.slots, *given))


@needs_native
@pytest.mark.parametrize("sizes", [(0, 3, 2), (2, 3, 0)], ids=["no images", "no slots"])
def test_nothing_of_nothing(sizes: tuple[int, int, int]) -> None:
    batch, inputs, slots = sizes
    case = Case(batch, inputs, 4, slots, 5, 6, queries=3, values=2)
    m, x = case.module(), case.x()
    for found, expected in zip(run(m, x, "native"), run(m, x), strict=True):
        assert found.shape == expected.shape
        assert found.count_nonzero() == 0


@needs_native
def test_without_inputs_slots_are_nan() -> None:
    case = Case(2, 0, 4, 3, 5, 6)
    assert case.module()(case.x(), "native").isnan().all()


@needs_native
def test_the_same_without_a_graph_and_from_any_memory() -> None:
    case = CASES[1]
    m, x = case.module(), case.x()
    expected = run(m, x, "native")
    with torch.no_grad():
        assert m(x, "native").equal(expected[0])
        for name, value in m.named_parameters():
            if value.dim() > 1:
                setattr(m, name, nn.Parameter(value.mT.contiguous().mT))
    turned = x.detach().mT.contiguous().mT.requires_grad_()
    for found, other in zip(run(m, turned, "native"), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-11, atol=1e-11)


@needs_native
def test_a_graph_serves_twice_and_any_leaves() -> None:
    m, x = CASES[1].module(), CASES[1].x()
    y = m(x, "native")
    leaves = {"x": x, **dict(m.named_parameters())}
    ways = torch.ones_like(y)
    every = torch.autograd.grad(y, [*leaves.values()], ways, retain_graph=True)
    again = torch.autograd.grad(y, [*leaves.values()], ways)
    for name, first, second in zip(leaves, every, again, strict=True):
        assert first.equal(second), name
        for leaf in leaves.values():
            leaf.requires_grad_(leaf is leaves[name])
        (alone,) = torch.autograd.grad(m(x, "native"), leaves[name], ways)
        assert alone.equal(first), name


@needs_native
@pytest.mark.parametrize("case", [CASES[1], CASES[4]], ids=str)
def test_opcheck(case: Case) -> None:
    m, x = case.module(), case.x()
    tensors = (x, m.slots, *m.weights())
    for keep in (True, False):
        opcheck(OP.default, (*plain(tensors), *EPSILONS.values(), case.iterations, keep))
    opcheck(OP.default, (*tensors, *EPSILONS.values(), case.iterations, True))
    states, kept = OP.default(*plain(tensors), *EPSILONS.values(), case.iterations, True)
    wanted = [y is not None for y in tensors]
    for some in (wanted, [w and i % 2 == 1 for i, w in enumerate(wanted)]):
        opcheck(
            OP_BACKWARD.default,
            (torch.ones_like(states), *plain(tensors), kept, EPSILONS["eps"], some),
        )


def plain(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [None if y is None else y.detach() for y in tensors]


@needs_native
def test_compiles_to_one_graph() -> None:
    m, x = CASES[2].module(), CASES[2].x()
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    y, z = compiled(x, "native"), m(x, "native")
    assert y.equal(z)
    for found, expected in zip(
        *(torch.autograd.grad(s.sum(), [x, *m.parameters()]) for s in (y, z)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 5)}, r"expected x \[B,N,C\], .*, got \[2, 5\], \[2, 3, 9\]"),
        ({"x": torch.zeros(3, 5, 7)}, r"x: expected \[2, 5, 7\], got \[3, 5, 7\]"),
        ({"key": None}, r"query: expected \[7, 9\], got \[4, 9\]"),
        ({"value": None}, r"weight_ih: expected \[27, 7\], got \[27, 6\]"),
        ({"bias_hh": torch.zeros(9)}, r"bias_hh: expected \[27\], got \[9\]"),
        ({"weight_out": torch.zeros(15, 9)}, r"weight_out: expected \[9, 15\], got \[15, 9\]"),
        ({"norm_bias": torch.zeros(9).double()}, "norm_bias: expected float32, got float64"),
        ({"x": torch.zeros(2, 5, 7).half()}, "x: expected float32, float64, got float16"),
        ({"logit": torch.zeros(9, device="meta")}, "logit: expected cpu, got meta"),
        ({"query": None}, "query: expected a tensor, got NoneType"),
        ({"iterations": 0}, "iterations: expected a whole number >= 1, got 0"),
        ({"eps": "1"}, "eps: expected a number, got '1'"),
        ({"backend": "triton"}, "backend 'triton' cannot run: it has no triton kernels"),
    ],
)
def test_error_messages(changes: dict[str, Any], message: str) -> None:
    m, x = CASES[1].module().float(), CASES[1].x(dtype=torch.float32)
    given = {**m.weights()._asdict(), **changes}
    weights = IterationWeights(*(given.pop(name) for name in IterationWeights._fields))
    with pytest.raises(ValueError, match=f"^slot_iterations: .*{message}"):
        slot_iterations(given.pop("x", x), m.slots, weights, **given)


@needs_native
@pytest.mark.parametrize(
    ("place", "tensor", "message"),
    [
        (0, torch.zeros(2, 5), r"expected x \[B,N,C\], .*, got \[2, 5\]"),
        (0, torch.zeros(3, 5, 7), r"expected x \[B,N,C\], .*, got \[3, 5, 7\]"),
        (1, torch.zeros(2, 3, 9).double(), "slots: expected Float .*, got Double"),
        (4, torch.zeros(4, 8), r"query: expected Float \[4, 9\] on cpu, got Float \[4, 8\] on cpu"),
        (6, None, r"query: expected Float \[7, 9\]"),
        (12, torch.zeros(26), r"bias_hh: expected Float \[27\]"),
        (22, 0, "iterations: expected at least 1, got 0"),
    ],
)
def test_error_messages_of_the_native_operator(place: int, tensor: Any, message: str) -> None:
    m, x = CASES[1].module().float(), CASES[1].x(dtype=torch.float32)
    arguments = [*plain((x, m.slots, *m.weights())), *EPSILONS.values(), 3, True]
    arguments[place] = tensor
    with pytest.raises(ValueError, match=f"^slot_iterations: {message}"):
        OP.default(*arguments)


@needs_native
@pytest.mark.parametrize("place", [0, 20], ids=["gradient", "kept"])
def test_error_messages_of_the_native_backward(place: int) -> None:
    m, x = CASES[1].module(), CASES[1].x()
    tensors = plain((x, m.slots, *m.weights()))
    states, kept = OP.default(*tensors, *EPSILONS.values(), 3, True)
    arguments = [states, *tensors, kept, 1e-3, [y is not None for y in tensors]]
    arguments[place] = arguments[place][..., 1:]  # type: ignore[index]
    with pytest.raises(ValueError, match=r"^slot_iterations: (grad_states|kept): expected Double"):
        OP_BACKWARD.default(*arguments)
