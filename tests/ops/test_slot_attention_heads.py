"""Slot attention with several heads, against einsum."""

from __future__ import annotations

import pytest
import torch
from op_testing import DEVICE, backend_params, unwritten_outputs_are_nan  # noqa: F401
from torch import Tensor

from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.ops import slot_attention

BACKENDS = backend_params("slot_attention")


def plain_heads(inputs: dict[str, Tensor], heads: int, joint: bool) -> tuple[Tensor, Tensor]:
    """Updates [B, K, H*E] and attention [B, K, H, N], written with einsum."""
    q, k, v = (inputs[name].unflatten(2, (heads, -1)) for name in ("q", "k", "v"))
    logits = torch.einsum("bkhd,bnhd->bkhn", q, k) + inputs["logit_bias"][:, :, None, None]
    attention = logits.flatten(1, 2).softmax(1).view_as(logits) if joint else logits.softmax(1)
    weights = attention + 1e-8
    updates = torch.einsum("bkhn,bnhe->bkhe", weights / weights.sum(-1, keepdim=True), v)
    return updates.flatten(2), attention


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softmax_over", ["slots", "slots_heads"])
def test_heads(softmax_over: str, backend: str) -> None:
    inputs = SlotAttentionCase(2, 3, 21, 8, 12).inputs(torch.float64, DEVICE)
    options = {"heads": 4, "softmax_over": softmax_over, "logit_bias": inputs["logit_bias"]}
    arguments = inputs["q"], inputs["k"], inputs["v"]
    updates, attention = slot_attention(
        *arguments, **options, return_attention=True, backend=backend
    )
    expected, expected_attention = plain_heads(inputs, 4, softmax_over == "slots_heads")
    torch.testing.assert_close(updates, expected)
    torch.testing.assert_close(attention, expected_attention.detach())
    weights = torch.arange(updates.numel()).view_as(updates).cos().to(updates)
    grads = [
        torch.autograd.grad((x * weights).sum(), list(inputs.values())) for x in (updates, expected)
    ]
    for actual, grad in zip(*grads, strict=True):
        torch.testing.assert_close(actual, grad)


@pytest.mark.parametrize("softmax_over", ["slots", "slots_heads"])
def test_heads_leave_out_masked_slots(softmax_over: str) -> None:
    inputs = SlotAttentionCase(2, 3, 21, 8, 12).inputs(device=DEVICE)
    mask = torch.tensor([[True, False, True], [True, True, True]], device=DEVICE)
    updates, attention = slot_attention(
        inputs["q"], inputs["k"], inputs["v"], slot_mask=mask, heads=2, softmax_over=softmax_over,
        return_attention=True,
    )  # fmt: skip
    assert updates.shape == (2, 3, 12)
    assert attention.shape == (2, 3, 2, 21)
    assert (updates[0, 1] == 0).all()
    assert (attention[0, 1] == 0).all()
    over = (1, 2) if softmax_over == "slots_heads" else 1
    torch.testing.assert_close(attention.sum(over), torch.ones_like(attention.sum(over)))
