"""Slot attention with a logit bias of -inf, inf or NaN, for slots that take part and for others."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from op_testing import DEVICE, backend_params, unwritten_outputs_are_nan  # noqa: F401
from torch import Tensor

from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.ops import slot_attention

COMPILED = backend_params("slot_attention", compiled=True)
# Of three slots: images with these biases stand between one with ordinary ones and each other.
BIASES = {
    "one": [0.5, -inf, 0.25],
    "all-but-one": [-inf, 0.5, -inf],
    "all": [-inf, -inf, -inf],
    "plus": [0.5, inf, 0.25],
    "both": [-inf, inf, 0.25],
    "nan": [0.5, 0.25, nan],
}
MASKS = [
    [True, True, True],
    [True, True, True],
    [False, True, True],
    [True, False, True],
    [False, True, False],
    [False, False, False],
]


def results(bias: list[float], masked: bool, backend: str) -> dict[str, Tensor]:
    images = SlotAttentionCase(len(MASKS), 3, 70, 4, 6)  # pixels in two tiles of a GPU
    inputs = {name: x.detach() for name, x in images.inputs(torch.float64, DEVICE).items()}
    inputs["logit_bias"][1:] = torch.tensor(bias)
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    updates, attention = slot_attention(
        inputs["q"],
        inputs["k"],
        inputs["v"],
        logit_bias=inputs["logit_bias"],
        slot_mask=torch.tensor(MASKS, device=DEVICE) if masked else None,
        eps=1e-3,
        return_attention=True,
        backend=backend,
    )
    weights = torch.arange(updates.numel()).view_as(updates).cos().to(updates)
    grads = torch.autograd.grad((updates * weights).sum(), list(inputs.values()))
    named = {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)}
    return {"updates": updates.detach(), "attention": attention, **named}


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("masked", [False, True], ids=["all-slots", "masked"])
@pytest.mark.parametrize("bias", list(BIASES))
def test_biases_that_are_not_finite(bias: str, masked: bool, backend: str) -> None:
    expected = results(BIASES[bias], masked, "reference")
    actual = results(BIASES[bias], masked, backend)
    for name, value in expected.items():
        for image, mask in enumerate(MASKS):
            torch.testing.assert_close(
                actual[name][image],
                value[image],
                rtol=1e-11,
                atol=1e-11,
                equal_nan=True,
                msg=lambda text, what=(name, image, mask): f"{what}: {text}",
            )


@pytest.mark.parametrize("backend", backend_params("slot_attention"))
def test_a_slot_whose_bias_is_minus_infinity_takes_part(backend: str) -> None:
    """It wins no pixel, but has eps of each."""
    q, k, v = (torch.tensor([[[1.0], [x]]], device=DEVICE) for x in (2.0, 3.0, 5.0))
    bias = torch.tensor([[0.0, -inf]], device=DEVICE)
    updates = slot_attention(q, k, v, logit_bias=bias, backend=backend)
    torch.testing.assert_close(updates, torch.full_like(updates, 3.0))


@pytest.mark.parametrize("backend", COMPILED)
def test_a_large_bias_costs_no_digits_of_the_products(backend: str) -> None:
    """Added before them it would round each: 8 times the error of plain PyTorch."""
    case = SlotAttentionCase(2, 7, 130, 64, 8)
    wide = {name: x.detach() for name, x in case.inputs(torch.float64, DEVICE).items()}
    wide["q"] /= 8
    wide["logit_bias"] += 100
    given = {name: x.float() for name, x in wide.items()}
    truth = slot_attention(**{n: x.double() for n, x in given.items()}, backend="reference")
    errors = [
        (slot_attention(**given, backend=name).double() - truth).square().mean().sqrt()
        for name in (backend, "reference")
    ]
    assert errors[0] <= 2 * errors[1]
