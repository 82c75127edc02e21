"""Slot attention modules where users put them: compiled, exported, narrow, mapped, quantised."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from emorl.compat import lucidrains
from emorl.nn import SlotAttention

B, N, D, K = 2, 12, 8, 3
MODULES: dict[str, Callable[[], nn.Module]] = {
    "own": lambda: SlotAttention(dim=D, num_slots=K, initial_slots="learned", bias=True),
    "own, extended": lambda: SlotAttention(
        dim=D, num_slots=K, initial_slots="learned", eps_in="sum"
    ),
    "lucidrains": lambda: lucidrains.SlotAttention(K, D),
    "lucidrains, heads": lambda: lucidrains.MultiHeadSlotAttention(K, D, heads=2, dim_head=4),
}


def module(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[name]()


def inputs() -> Tensor:
    return torch.randn(B, N, D, generator=torch.Generator().manual_seed(1))


def seeded(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    torch.manual_seed(2)
    return function(*arguments)


@pytest.mark.parametrize("name", ["own, extended", "lucidrains, heads"])
def test_one_graph_and_an_export(name: str) -> None:
    m, x = module(name), inputs()
    expected = seeded(m, x)
    exported = torch.export.export(m.eval(), (x,)).module()
    torch.testing.assert_close(seeded(exported, x), expected)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    found = seeded(compiled, x)
    torch.testing.assert_close(found, expected)
    weights = [*m.parameters()]
    gradients = [torch.autograd.grad(y.square().sum(), weights) for y in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_near_and_finite(name: str, dtype: torch.dtype) -> None:
    """Products have the narrow dtype's roundings; T iterations of a few layers each add them."""
    m, x = module(name), inputs()
    expected = seeded(m, x)
    with torch.autocast("cpu", dtype):
        found = seeded(m, x)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 8 * torch.finfo(dtype).eps * expected.abs().max()
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
        m.zero_grad()
        m(sample[None]).square().sum().backward()
        for key, parameter in m.named_parameters():
            torch.testing.assert_close(found[key][i], parameter.grad, rtol=1e-8, atol=1e-10)


def test_mapped_without_gradients() -> None:
    m, x = module("own"), inputs()
    with torch.no_grad():
        found = vmap(lambda sample: m(sample[None])[0])(x)
        torch.testing.assert_close(found, m(x))


@pytest.mark.parametrize("name", MODULES)
def test_quantised_layers_are_called(name: str) -> None:
    """int8 weights: 8 bits of each layer's largest weight, as PyTorch's own layers have them."""
    m, x = module(name), inputs()
    quantised = torch.ao.quantization.quantize_dynamic(m, {nn.Linear}, dtype=torch.qint8)
    assert not [p for p in quantised.modules() if type(p) is nn.Linear]
    with torch.no_grad():
        found, expected = seeded(quantised, x), seeded(m, x)
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
