"""Slot attention against its plain reference: numbers and gradients."""

from __future__ import annotations

import itertools
import re
from functools import reduce

import pytest
import torch
from op_testing import (  # noqa: F401
    DEVICE,
    backend_params,
    unwritten_outputs_are_nan,
)
from slot_attention_testing import cotangent, roundings
from torch import Tensor

from emorl.bench.accuracy import assert_as_accurate_as_plain
from emorl.bench.cases.slot_attention import SLOT_ATTENTION, SlotAttentionCase
from emorl.bench.ops.operators import OPERATORS, call
from emorl.bench.passes import BOTH
from emorl.ops import slot_attention
from emorl.ops.library import NARROW
from emorl.ops.slot_attention import _limits, reference

BACKENDS = backend_params("slot_attention")
COMPILED = backend_params("slot_attention", compiled=True)
NATIVE = [x for x in COMPILED if x.values[0] == "native"]
SMALL = SlotAttentionCase(2, 3, 5, 4, 6)


def outputs_and_gradients(
    inputs: dict[str, Tensor], backend: str, slot_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Both outputs, and the gradient of a weighted sum of the updates for every input."""
    v = inputs.get("v", inputs["k"])
    updates, attention = slot_attention(
        inputs["q"],
        inputs["k"],
        v,
        logit_bias=inputs["logit_bias"],
        slot_mask=slot_mask,
        return_attention=True,
        backend=backend,
    )
    grads = torch.autograd.grad((updates * cotangent(updates)).sum(), list(inputs.values()))
    named = {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)}
    return {"updates": updates.detach(), "attention": attention, **named}


def as_masked(case: SlotAttentionCase, masked: bool) -> Tensor | None:
    """A mask that leaves out every third slot and, with several images, all slots of the last."""
    if not masked:
        return None
    mask = (torch.arange(case.batch * case.slots) % 3 != 1).view(case.batch, case.slots)
    mask[1:][-1:] = False
    return mask.to(DEVICE)


def skip_beyond_limits(case: SlotAttentionCase, dtype: torch.dtype, backend: str) -> None:
    inputs = case.inputs(dtype, DEVICE)
    limit = _limits(inputs["q"], inputs.get("v", inputs["k"]), dtype, backend)[backend]
    if limit:
        with pytest.raises(ValueError, match=f"{backend!r} cannot run: {re.escape(limit)}"):
            outputs_and_gradients(inputs, backend)
        pytest.skip(f"refused, as it must be: {limit}")


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("width", [256, 768])
def test_sums_over_a_width_round_as_plain_ones(width: int, backend: str) -> None:
    """Added up in a row they had up to 3.2 times plain's error, root mean square."""
    case = SlotAttentionCase(2, 7, 196, width, width)
    skip_beyond_limits(case, torch.float32, backend)
    runs = {
        (dtype, name): outputs_and_gradients(case.inputs(dtype, DEVICE), name)
        for dtype, name in (
            (torch.float64, "reference"),
            (torch.float32, "reference"),
            (torch.float32, backend),
        )
    }
    truth, plain, fused = runs.values()
    for name, expected in truth.items():
        errors = [(x[name] - expected).square().mean().sqrt() for x in (fused, plain)]
        assert errors[0] < 2 * errors[1], name


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("masked", [False, True], ids=["all-slots", "masked"])
@pytest.mark.parametrize("case", SLOT_ATTENTION, ids=str)
def test_is_as_accurate_as_plain(case: SlotAttentionCase, masked: bool, backend: str) -> None:
    skip_beyond_limits(case, torch.float64, backend)
    mask = as_masked(case, masked)
    inputs = case.inputs(torch.float32, DEVICE)
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    truth = outputs_and_gradients(wide, "reference", mask)
    plain = outputs_and_gradients(inputs, "reference", mask)
    actual = outputs_and_gradients(inputs, backend, mask)
    allowed = roundings(inputs, truth["attention"], slot_mask=mask)
    assert_as_accurate_as_plain(actual, plain, truth, allowed)
    for name, actual in outputs_and_gradients(wide, backend, mask).items():
        torch.testing.assert_close(actual, truth[name], rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_a_loop_over_pixels(backend: str) -> None:
    inputs = SMALL.inputs(torch.float64, DEVICE)
    q, k, v, bias = (inputs[name].detach() for name in ("q", "k", "v", "logit_bias"))
    updates, attention = slot_attention(
        q, k, v, eps=0.1, logit_bias=bias, return_attention=True, backend=backend
    )
    for image in range(2):
        total, mass = q.new_zeros(3, 6), q.new_zeros(3)
        for pixel in range(5):
            scores = [
                (q[image, slot] @ k[image, pixel] + bias[image, slot]).exp() for slot in range(3)
            ]
            shares = torch.stack(scores) / sum(scores)
            torch.testing.assert_close(attention[image, :, pixel], shares)
            total += (shares + 0.1)[:, None] * v[image, pixel]
            mass += shares + 0.1
        torch.testing.assert_close(updates[image], total / mass[:, None])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True], ids=["all-slots", "masked"])
def test_gradcheck(backend: str, masked: bool) -> None:
    inputs = SMALL.inputs(torch.float64, DEVICE)
    mask = None
    if masked:
        mask = torch.tensor([[True, False, True], [True, True, True]], device=DEVICE)

    def updates(q: Tensor, k: Tensor, bias: Tensor, v: Tensor) -> Tensor:
        return slot_attention(q, k, v, logit_bias=bias, slot_mask=mask, eps=0.1, backend=backend)

    fast = backend == "triton" and DEVICE == "cpu"  # Triton's interpreter is slow
    assert torch.autograd.gradcheck(updates, list(inputs.values()), fast_mode=fast)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_slots_take_no_part(backend: str) -> None:
    inputs = {name: x.detach() for name, x in SMALL.inputs(device=DEVICE).items()}
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    mask = torch.tensor([[True, False, True], [False, False, False]], device=DEVICE)
    updates, attention = slot_attention(
        q, k, v, slot_mask=mask, return_attention=True, backend=backend
    )
    torch.testing.assert_close(updates[:1, ::2], slot_attention(q[:1, ::2], k[:1], v[:1]))
    torch.testing.assert_close(attention.sum(1), mask.any(1, keepdim=True).expand(2, 5).float())
    assert (updates[~mask] == 0).all()
    assert (attention[~mask] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_pixels_give_nan_updates_and_zero_gradients(backend: str) -> None:
    q = torch.randn(2, 3, 4, device=DEVICE, requires_grad=True)
    k, v = q.new_empty(2, 0, 4), q.new_empty(2, 0, 5)
    updates = slot_attention(q, k, v, backend=backend)
    assert updates.isnan().all()
    assert (torch.autograd.grad(updates.sum(), q)[0] == 0).all()


@pytest.mark.parametrize("backend", COMPILED)
def test_strided_inputs(backend: str) -> None:
    def strided(dtype: torch.dtype) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(2, 8, 41, generator=generator).to(dtype)
        slots = torch.randn(2, 3, 16, generator=generator).to(dtype)[..., ::2]
        bias = torch.randn(1, 3, generator=generator).to(dtype).expand(2, 3)
        inputs = {"q": slots, "k": features.mT, "v": features.mT[..., 1:6], "logit_bias": bias}
        return {name: x.to(DEVICE).requires_grad_() for name, x in inputs.items()}

    truth = outputs_and_gradients(strided(torch.float64), "reference")
    plain = outputs_and_gradients(strided(torch.float32), "reference")
    actual = outputs_and_gradients(strided(torch.float32), backend)
    allowed = roundings(strided(torch.float32), truth["attention"])
    assert_as_accurate_as_plain(actual, plain, truth, allowed)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4))[1:], ids=str)
def test_subsets_of_gradients(wanted: tuple[bool, ...], backend: str) -> None:
    inputs = SMALL.inputs(torch.float64, DEVICE)
    expected = outputs_and_gradients(inputs, "reference")
    chosen = [name for name, want in zip(inputs, wanted, strict=True) if want]
    arguments = {name: x.detach().requires_grad_(name in chosen) for name, x in inputs.items()}
    updates = slot_attention(**arguments, backend=backend)
    leaves = [arguments[name] for name in chosen]
    grads = torch.autograd.grad((updates * cotangent(updates)).sum(), leaves)
    for name, grad in zip(chosen, grads, strict=True):
        torch.testing.assert_close(grad, expected[f"grad_{name}"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, backend: str) -> None:
    inputs = SMALL.inputs(dtype, DEVICE)
    wide = {name: x.detach().float().requires_grad_() for name, x in inputs.items()}
    expected = outputs_and_gradients(wide, "reference")
    actual = outputs_and_gradients(inputs, backend)
    assert {x.dtype for x in actual.values()} == {dtype}
    weights = expected["updates"].to(dtype)
    torch.testing.assert_close(actual["updates"], weights, rtol=torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(actual["grad_q"].float(), expected["grad_q"], rtol=2e-2, atol=2e-2)


def assert_same_bits_as_widened(inputs: dict[str, Tensor], backend: str) -> None:
    """Rounding the results that float32 (float64) copies of the inputs give is the same."""
    dtypes = [x.dtype for name, x in inputs.items() if name != "logit_bias"]
    common = reduce(torch.promote_types, dtypes)
    copied = torch.promote_types(common, torch.float32)
    wide = {name: x.detach().to(copied).requires_grad_() for name, x in inputs.items()}
    expected = outputs_and_gradients(wide, backend)
    for name, actual in outputs_and_gradients(inputs, backend).items():
        leaf = inputs.get(name.removeprefix("grad_"))
        rounded = expected[name].to(common if leaf is None else leaf.dtype)
        torch.testing.assert_close(actual, rounded, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("dtype", NARROW, ids=["bf16", "f16"])
@pytest.mark.parametrize("case", SLOT_ATTENTION, ids=str)
def test_narrow_inputs_are_as_good_as_float32_copies(
    case: SlotAttentionCase, dtype: torch.dtype, backend: str
) -> None:
    skip_beyond_limits(case, torch.float32, backend)
    assert_same_bits_as_widened(case.inputs(dtype, DEVICE), backend)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "bfloat16", "bfloat16"),
        ("float16", "bfloat16", "bfloat16"),
        ("bfloat16", "float16", "bfloat16"),
        ("bfloat16", "bfloat16", "float32"),
        ("float64", "float16", "float16"),
    ],
    ids="-".join,
)
def test_mixed_dtypes_of_queries_keys_and_values(dtypes: tuple[str, ...], backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    for name, dtype in zip("qkv", dtypes, strict=True):
        inputs[name] = inputs[name].detach().to(getattr(torch, dtype)).requires_grad_()
    assert_same_bits_as_widened(inputs, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    with torch.autocast(DEVICE, torch.bfloat16):
        updates = slot_attention(q, k, v, backend=backend)
    torch.testing.assert_close(updates, slot_attention(q, k, v, backend=backend))


@pytest.mark.parametrize("backend", COMPILED)
def test_backward_runs_twice_on_one_graph(backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    updates = slot_attention(inputs["q"], inputs["k"], inputs["v"], backend=backend)
    first = torch.autograd.grad(updates.sum(), inputs["q"], retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(updates.sum(), inputs["q"])[0])


@pytest.mark.parametrize("backend", COMPILED)
def test_second_derivative_raises(backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    updates = slot_attention(inputs["q"], inputs["k"], inputs["v"], backend=backend)
    (grad,) = torch.autograd.grad(updates.square().sum(), inputs["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="slot_attention: no second derivative in compiled"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_not_differentiable(backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    _, attention = slot_attention(q, k, v, return_attention=True, backend=backend)
    assert not attention.requires_grad


@pytest.mark.parametrize("backend", COMPILED)
def test_repeats_bit_by_bit_with_any_number_of_threads(backend: str) -> None:
    pixels = 67 if backend == "triton" and DEVICE == "cpu" else 1225
    inputs = SlotAttentionCase(3, 5, pixels, 16, 24).inputs(device=DEVICE)
    expected = outputs_and_gradients(inputs, backend)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for name, value in outputs_and_gradients(inputs, backend).items():
                assert torch.equal(value, expected[name]), (name, threads)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value_width", [None, 64])
def test_benchmarks_allow_less_rounding_than_the_formula_does(value_width):
    """What `emorl bench --suite ops` allows, by the number of products of each sum."""
    operator, case = OPERATORS["slot_attention"], SlotAttentionCase(2, 4, 1225, 64, value_width)
    inputs = {name: x.detach().double().requires_grad_() for name, x in case.inputs().items()}
    results = call(lambda x: operator.plain(case, x), inputs, BOTH).named()
    v = inputs.get("v", inputs["k"])
    attention = reference(inputs["q"], inputs["k"], v, inputs["logit_bias"])[1].detach()
    derived = roundings(inputs, attention)
    names = ["updates", *(f"grad_{name}" for name in inputs)]
    for name, x, products in zip(names, results.values(), case.products(), strict=True):
        assert products**0.5 * x.abs().max().item() < derived[name], name
