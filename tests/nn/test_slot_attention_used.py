"""Slot attention modules where users put them: compiled, exported, narrow, mapped, quantised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from rounding_testing import FACTOR, assert_rounded, errors_of, rounding_of
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from emorl.compat import lucidrains
from emorl.nn import SlotAttention

B, N, D, K = 2, 12, 8, 3
OWN = {"dim": D, "num_slots": K, "initial_slots": "learned"}
MODULES: dict[str, Callable[..., nn.Module]] = {
    "own": partial(SlotAttention, **OWN, bias=True),
    "own, extended": partial(SlotAttention, **OWN, eps_in="sum"),
    "lucidrains": partial(lucidrains.SlotAttention, K, D),
    "lucidrains, heads": partial(lucidrains.MultiHeadSlotAttention, K, D, heads=2, dim_head=4),
}


def module(name: str, **options: str) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[name](**options)


def plain(name: str) -> nn.Module:
    return module(name, backend="reference")


def inputs() -> Tensor:
    return torch.randn(B, N, D, generator=torch.Generator().manual_seed(1))


def seeded(m: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    return [m(x)]


def with_gradients(m: nn.Module, x: Tensor) -> list[Tensor]:
    (y,) = seeded(m, x)
    return [y, *torch.autograd.grad(y.square().sum(), [*m.parameters()])]


@pytest.mark.parametrize(
    "name", ["own, extended", pytest.param("lucidrains, heads", marks=pytest.mark.slow)]
)
def test_one_graph_and_an_export(name: str) -> None:
    m, x = module(name), inputs()
    exported = torch.export.export(m.eval(), (x,)).module()
    assert_rounded(seeded(exported, x), seeded(m, x), rounding_of(seeded, plain(name), x))
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    rounding = rounding_of(with_gradients, plain(name), x)
    assert_rounded(with_gradients(compiled, x), with_gradients(m, x), rounding)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_near_and_finite(name: str, dtype: torch.dtype) -> None:
    m, x = module(name), inputs()
    with torch.autocast("cpu", dtype):
        (found,) = seeded(m, x)
        rounding = rounding_of(seeded, plain(name), x, torch.finfo(dtype).eps)
    assert found.dtype == torch.float32
    assert_rounded([found], seeded(m, x), rounding)
    found.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize("name", ["own", "own, extended"])
def test_gradients_of_each_sample(name: str) -> None:
    """By `torch.func`, as libraries for privacy and influence take them."""
    m, x = module(name).double(), inputs().double()
    weights = {key: p.detach() for key, p in m.named_parameters()}

    def loss(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(m, weights, (sample[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for i, sample in enumerate(x):
        rounding = rounding_of(with_gradients, plain(name).double(), sample[None])
        _, *expected = with_gradients(m, sample[None])
        assert_rounded([found[key][i] for key in weights], expected, rounding[1:])


def test_mapped_without_gradients() -> None:
    m, x = module("own"), inputs()
    with torch.no_grad():
        found = vmap(lambda sample: m(sample[None])[0])(x)
        assert_rounded([found], [m(x)], rounding_of(seeded, plain("own"), x))


def quantised(m: nn.Module) -> nn.Module:
    found: nn.Module = torch.ao.quantization.quantize_dynamic(m, {nn.Linear}, dtype=torch.qint8)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_quantised_layers_are_called(name: str) -> None:
    """Every one; and the error of their 8 bits is what it is where all else is plain PyTorch."""
    m, x, called = quantised(module(name)), inputs(), set()
    layers = {k: p for k, p in m.named_modules() if "quantized.dynamic" in type(p).__module__}
    for key, layer in layers.items():
        layer.register_forward_hook(lambda *_, key=key: called.add(key))
    with torch.no_grad():
        exact = seeded(module(name), x)
        [error], [own] = (errors_of(seeded(p, x), exact) for p in (m, quantised(plain(name))))
    linear = {k for k, p in module(name).named_modules() if type(p) is nn.Linear}
    assert called == layers.keys() == linear
    assert 0 < error <= FACTOR * own
