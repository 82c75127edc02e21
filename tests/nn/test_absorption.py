"""Absorbed projections against dense features, keys and values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from emorl.nn import AbsorbedAttention, LinearFeatures
from emorl.ops import slot_attention

B, K, N, H, C, D, E = 2, 3, 37, 6, 5, 4, 7
SHAPES = {
    "hidden": (B, N, H),
    "weight": (C, H),
    "bias": (C,),
    "key": (D, C),
    "value": (E, C),
    "query": (B, K, D),
}


def leaves() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in SHAPES.items()
    }


def dense(x: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    features = F.linear(x["hidden"], x["weight"], x["bias"])
    keys, values = F.linear(features, x["key"]), F.linear(features, x["value"])
    return slot_attention(x["query"], keys, values, return_attention=True, backend="reference")


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_absorbed_projections_change_nothing(backend: str) -> None:
    ours, plain = leaves(), leaves()
    features = LinearFeatures(ours["hidden"], ours["weight"], ours["bias"])
    pixels = AbsorbedAttention.of(features, ours["key"], ours["value"])
    updates, attention = pixels.attend(ours["query"], return_attention=True, backend=backend)
    expected, expected_attention = dense(plain)
    torch.testing.assert_close(updates, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(attention, expected_attention, rtol=1e-12, atol=1e-12)
    updates.square().sum().backward()
    expected.square().sum().backward()
    for name in SHAPES:
        torch.testing.assert_close(ours[name].grad, plain[name].grad, rtol=1e-10, atol=1e-11)


def test_attention_is_left_out_unless_asked_for() -> None:
    x = leaves()
    features = LinearFeatures(x["hidden"], x["weight"], x["bias"])
    updates, attention = AbsorbedAttention.of(features, x["key"], x["value"]).attend(x["query"])
    assert attention is None
    torch.testing.assert_close(updates, dense(x)[0])


def test_dense_features() -> None:
    x = leaves()
    features = LinearFeatures(x["hidden"], x["weight"], x["bias"]).dense()
    torch.testing.assert_close(features, F.linear(x["hidden"], x["weight"], x["bias"]))
