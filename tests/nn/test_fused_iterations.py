"""When slot attention's iterations are one operator, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rounding_testing import assert_rounded, rounding_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from emorl.nn import SlotAttention
from emorl.nn.fused_iterations import _weights
from emorl.nn.networks import AbsorbedAttention
from emorl.ops import backends
from emorl.ops.library import obstacles

OBSTACLE = backends()["slot_iterations"]["native"]
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
B, N, D, K, T = 2, 30, 8, 3, 3


class Calls(TorchDispatchMode):
    """Counts the iterations that the operator computes."""

    iterations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.emorl.slot_iterations.default:
            self.iterations += args[-2]
        return func(*args, **(kwargs or {}))


def module(**options: Any) -> SlotAttention:
    torch.manual_seed(0)
    return SlotAttention(dim=D, num_slots=K, initial_slots="learned", iterations=T, **options)


def inputs(**options: Any) -> Tensor:
    x = torch.randn(B, N, D, generator=torch.Generator().manual_seed(1))
    return x.to(**options).requires_grad_()


def run(m: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    y = m(x, **options)
    results = [*y] if isinstance(y, tuple) else [y]
    loss = sum((z * torch.linspace(-1, 2, z.numel()).view_as(z)).sum() for z in results)
    leaves = [x, *m.parameters()]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [*results, *(torch.zeros(()) if g is None else g for g in found)]


def fused(m: nn.Module, x: Tensor, **options: Any) -> int:
    """How many iterations of a call are the operator's; the rest are the layers' own."""
    with Calls() as calls:
        m(x, **options)
    return calls.iterations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True}, {"projected": 5, "bias": True}, {"hidden": 3, "eps": 0.1, "scale": 0.3}],
    ids=str,
)
def test_plain_layers_are_one_operator(options: dict[str, Any], dtype: torch.dtype) -> None:
    m, x = module(**options).to(dtype), inputs(dtype=dtype)
    plain = module(**options, backend="reference").to(dtype)
    assert fused(m, x) == T
    assert fused(plain, x) == 0
    assert_rounded(run(m, x), run(plain, x), rounding_of(run, plain, x))


def hooked(part: str) -> Callable[[SlotAttention], None]:
    def change(m: SlotAttention) -> None:
        m.get_submodule(part).register_forward_hook(lambda _, __, y: 1.5 * y)

    return change


def replaced(part: str, make: Callable[[], nn.Module]) -> Callable[[SlotAttention], None]:
    def change(m: SlotAttention) -> None:
        torch.manual_seed(2)
        m.set_submodule(part, make())

    return change


CHANGES = {
    **{f"hook of {x}": hooked(x) for x in ("query", "norm_slots", "gru", "norm_mlp", "mlp")},
    **{f"hook of {x}": hooked(x) for x in ("mlp.0", "mlp.1", "mlp.2")},
    "no bias of the norm": replaced("norm_slots", lambda: nn.LayerNorm(D, bias=False)),
    "no bias of the cell": replaced("gru", lambda: nn.GRUCell(D, D, bias=False)),
    "another norm": replaced("norm_mlp", lambda: nn.LayerNorm((K, D))),
    "another activation": replaced("mlp.1", nn.GELU),
    "no bias of a layer": replaced("mlp.0", lambda: nn.Linear(D, 128, bias=False)),
    "a fourth layer": replaced(
        "mlp", lambda: nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D), nn.Tanh())
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_do_more_are_called(change: str) -> None:
    m, plain, x = module(), module(backend="reference"), inputs()
    for one in (m, plain):
        CHANGES[change](one)
    assert fused(m, x) == 0
    assert_rounded(run(m, x), run(plain, x), rounding_of(run, plain, x))


@pytest.mark.parametrize(
    ("options", "given", "expected"),
    [
        ({}, {"return_attention": True}, T - 1),
        ({}, {"return_attention": True, "iterations": 1}, 0),
        ({}, {"iterations": 2}, 2),
        ({}, {"slot_mask": torch.ones(B, K, dtype=torch.bool)}, 0),
        ({}, {"input_mask": torch.ones(B, N, dtype=torch.bool)}, 0),
        ({"gru_state": "normalised"}, {}, 0),
        ({"recurrent": False}, {}, 0),
        ({"hidden": None}, {}, 0),
        ({"norm_slots": False}, {}, 0),
        ({"eps_in": "sum"}, {}, 0),
        ({"heads": 2, "softmax_over": "slots_heads"}, {}, 0),
        ({"combine_heads": True}, {}, 0),
        ({"gradient": "implicit"}, {}, 0),
        ({"gradient": "bilevel"}, {}, 0),
        ({"backend": "reference"}, {}, 0),
        ({"backend": "native"}, {}, T),
    ],
    ids=str,
)
def test_which_iterations_are_the_operator(
    options: dict[str, Any], given: dict[str, Any], expected: int
) -> None:
    assert fused(module(**options), inputs(), **given) == expected


def test_neither_narrow_nor_mapped_nor_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    m, x = module(), inputs()
    assert fused(module().bfloat16(), x.bfloat16()) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(m, x) == 0
    with torch.no_grad(), Calls() as calls:
        torch.vmap(m)(x[:, None])
    assert calls.iterations == 0
    monkeypatch.setitem(obstacles["slot_iterations"]["native"], "cpu", "no compiler; get one")
    assert fused(m, x) == 0


def test_parametrised_weights_are_what_is_computed() -> None:
    m, plain, x = module(), module(backend="reference"), inputs()
    for one in (m, plain):
        parametrizations.weight_norm(one.gru, "weight_hh")
        parametrizations.weight_norm(one.query)
    assert fused(m, x) == T
    assert_rounded(run(m, x), run(plain, x), rounding_of(run, plain, x))


@pytest.mark.parametrize(
    ("dim", "slots", "key", "value"),
    [(16, 4, False, False), (32, 3, False, True), (64, 3, True, True)],
)
def test_matrices_are_multiplied_where_that_is_less_work(
    dim: int, slots: int, key: bool, value: bool
) -> None:
    """For 16 images: from as many rows as queries are wide, and from three times as many."""
    torch.manual_seed(0)
    m = SlotAttention(dim=dim, initial_slots="given", bias=True)
    x = torch.randn(1, 4, dim)
    absorbed = AbsorbedAttention.through(x, m.key, m.value)
    weights = _weights(m.layers(), m.rules, absorbed, slots)
    assert (weights.key is not None, weights.value is not None) == (key, value)
