"""Operators against their plain references: numbers, gradients, errors, torch.compile."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.cases import SLOT_ATTENTION, SlotAttentionCase
from emorl.ops import _library, backends, slot_attention
from emorl.ops.slot_attention import reference

NATIVE_OBSTACLE = backends()["slot_attention"]["native"]
needs_native = pytest.mark.skipif(NATIVE_OBSTACLE is not None, reason=str(NATIVE_OBSTACLE))
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
SMALL = SlotAttentionCase(2, 3, 5, 4, 6)


@pytest.fixture(autouse=True)
def unwritten_outputs_are_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


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
    weights = torch.arange(updates.numel()).view_as(updates).cos().to(updates)
    grads = torch.autograd.grad((updates * weights).sum(), list(inputs.values()))
    named = {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)}
    return {"updates": updates.detach(), "attention": attention, **named}


def assert_as_accurate_as_plain(
    actual: dict[str, Tensor], plain: dict[str, Tensor], truth: dict[str, Tensor]
) -> None:
    """No result is further from the float64 truth than twice the plain result, plus rounding."""
    for name, expected in truth.items():
        assert actual[name].shape == expected.shape, name
        if expected.numel() == 0:
            continue
        rounding = 4 * torch.finfo(plain[name].dtype).eps * expected.abs().max().item()
        allowed = 2 * (plain[name] - expected).abs().max().item() + rounding
        error = (actual[name] - expected).abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def as_masked(case: SlotAttentionCase, masked: bool) -> Tensor | None:
    """A mask that leaves out every third slot and, with several images, all slots of the last."""
    if not masked:
        return None
    mask = (torch.arange(case.batch * case.slots) % 3 != 1).view(case.batch, case.slots)
    mask[1:][-1:] = False
    return mask


@needs_native
@pytest.mark.parametrize("masked", [False, True], ids=["all-slots", "masked"])
@pytest.mark.parametrize("case", SLOT_ATTENTION, ids=str)
def test_native_is_as_accurate_as_plain(case: SlotAttentionCase, masked: bool) -> None:
    mask = as_masked(case, masked)
    inputs = case.inputs(torch.float32)
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    truth = outputs_and_gradients(wide, "reference", mask)
    plain = outputs_and_gradients(inputs, "reference", mask)
    assert_as_accurate_as_plain(outputs_and_gradients(inputs, "native", mask), plain, truth)
    for name, actual in outputs_and_gradients(wide, "native", mask).items():
        torch.testing.assert_close(actual, truth[name], rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_against_a_loop_over_pixels(backend: str) -> None:
    inputs = SMALL.inputs(torch.float64)
    q, k, v, bias = (inputs[name].detach() for name in ("q", "k", "v", "logit_bias"))
    updates, attention = slot_attention(
        q, k, v, eps=0.1, logit_bias=bias, return_attention=True, backend=backend
    )
    for image in range(2):
        total, mass = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
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
    inputs = SMALL.inputs(torch.float64)
    mask = torch.tensor([[True, False, True], [True, True, True]]) if masked else None

    def updates(q: Tensor, k: Tensor, bias: Tensor, v: Tensor) -> Tensor:
        return slot_attention(q, k, v, logit_bias=bias, slot_mask=mask, eps=0.1, backend=backend)

    assert torch.autograd.gradcheck(updates, list(inputs.values()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_slots_take_no_part(backend: str) -> None:
    inputs = {name: x.detach() for name, x in SMALL.inputs().items()}
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    mask = torch.tensor([[True, False, True], [False, False, False]])
    updates, attention = slot_attention(
        q, k, v, slot_mask=mask, return_attention=True, backend=backend
    )
    torch.testing.assert_close(updates[:1, ::2], slot_attention(q[:1, ::2], k[:1], v[:1]))
    torch.testing.assert_close(attention.sum(1), mask.any(1, keepdim=True).expand(2, 5).float())
    assert (updates[~mask] == 0).all()
    assert (attention[~mask] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_pixels_give_nan_updates_and_zero_gradients(backend: str) -> None:
    q = torch.randn(2, 3, 4, requires_grad=True)
    updates = slot_attention(q, torch.randn(2, 0, 4), torch.randn(2, 0, 5), backend=backend)
    assert updates.isnan().all()
    assert (torch.autograd.grad(updates.sum(), q)[0] == 0).all()


@needs_native
def test_strided_inputs() -> None:
    def strided(dtype: torch.dtype) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(2, 8, 41, generator=generator).to(dtype)
        slots = torch.randn(2, 3, 16, generator=generator).to(dtype)[..., ::2]
        bias = torch.randn(1, 3, generator=generator).to(dtype).expand(2, 3)
        inputs = {"q": slots, "k": features.mT, "v": features.mT[..., 1:6], "logit_bias": bias}
        return {name: x.requires_grad_() for name, x in inputs.items()}

    truth = outputs_and_gradients(strided(torch.float64), "reference")
    plain = outputs_and_gradients(strided(torch.float32), "reference")
    actual = outputs_and_gradients(strided(torch.float32), "native")
    assert_as_accurate_as_plain(actual, plain, truth)


@needs_native
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=4))[1:], ids=str)
def test_subsets_of_gradients(wanted: tuple[bool, ...]) -> None:
    inputs = SMALL.inputs(torch.float64)
    expected = outputs_and_gradients(inputs, "reference")
    chosen = [name for name, want in zip(inputs, wanted, strict=True) if want]
    arguments = {name: x.detach().requires_grad_(name in chosen) for name, x in inputs.items()}
    updates = slot_attention(**arguments, backend="native")
    weights = torch.arange(updates.numel()).view_as(updates).cos()
    grads = torch.autograd.grad((updates * weights).sum(), [arguments[name] for name in chosen])
    for name, grad in zip(chosen, grads, strict=True):
        torch.testing.assert_close(grad, expected[f"grad_{name}"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, backend: str) -> None:
    inputs = SMALL.inputs(dtype)
    wide = {name: x.detach().float().requires_grad_() for name, x in inputs.items()}
    expected = outputs_and_gradients(wide, "reference")
    actual = outputs_and_gradients(inputs, backend)
    assert {x.dtype for x in actual.values()} == {dtype}
    weights = expected["updates"].to(dtype)
    torch.testing.assert_close(actual["updates"], weights, rtol=torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(actual["grad_q"].float(), expected["grad_q"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(backend: str) -> None:
    inputs = SMALL.inputs()
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    with torch.autocast("cpu", torch.bfloat16):
        updates = slot_attention(q, k, v, backend=backend)
    torch.testing.assert_close(updates, slot_attention(q, k, v, backend=backend))


@needs_native
def test_backward_runs_twice_on_one_graph() -> None:
    inputs = SMALL.inputs()
    updates = slot_attention(inputs["q"], inputs["k"], inputs["v"])
    first = torch.autograd.grad(updates.sum(), inputs["q"], retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(updates.sum(), inputs["q"])[0])


@needs_native
def test_second_derivative_raises() -> None:
    inputs = SMALL.inputs()
    updates = slot_attention(inputs["q"], inputs["k"], inputs["v"], backend="native")
    (grad,) = torch.autograd.grad(updates.square().sum(), inputs["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="slot_attention: no second derivative in the native"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_not_differentiable(backend: str) -> None:
    inputs = SMALL.inputs()
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    _, attention = slot_attention(q, k, v, return_attention=True, backend=backend)
    assert not attention.requires_grad


@needs_native
def test_repeats_bit_by_bit_with_any_number_of_threads() -> None:
    inputs = SlotAttentionCase(3, 5, 1225, 16, 24).inputs()
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(inputs, "native"))
            again = outputs_and_gradients(inputs, "native")
            assert all(torch.equal(results[-1][name], again[name]) for name in again)
    finally:
        torch.set_num_threads(before)
    for name, value in results[0].items():
        torch.testing.assert_close(results[2][name], value, rtol=1e-4, atol=1e-5, msg=name)


def op_arguments(case: SlotAttentionCase, requires_grad: bool) -> tuple[Tensor | None, ...]:
    inputs = {name: x.detach().requires_grad_(requires_grad) for name, x in case.inputs().items()}
    return inputs["q"], inputs["k"], inputs.get("v"), inputs["logit_bias"], None


@needs_native
@pytest.mark.parametrize("case", [SMALL, SlotAttentionCase(2, 3, 5, 4)], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_forward(case: SlotAttentionCase, requires_grad: bool) -> None:
    op = torch.ops.emorl.slot_attention.default
    torch.library.opcheck(op, (*op_arguments(case, requires_grad), 1e-8, requires_grad))


@needs_native
@pytest.mark.parametrize("case", [SMALL, SlotAttentionCase(2, 3, 5, 4)], ids=str)
def test_opcheck_backward(case: SlotAttentionCase) -> None:
    arguments = op_arguments(case, False)
    updates, mass, _ = torch.ops.emorl.slot_attention.default(*arguments, 1e-8, False)
    op = torch.ops.emorl.slot_attention_backward.default
    for wanted in ([True, True, False, True], [False, False, True, False]):
        torch.library.opcheck(
            op, (torch.ones_like(updates), *arguments, updates, mass, 1e-8, wanted)
        )


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("return_attention", [False, True])
def test_compiles_without_a_graph_break(backend: str, return_attention: bool) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = slot_attention(q, k, v, backend=backend, return_attention=return_attention)
        return (result[0] if isinstance(result, tuple) else result) * 2

    inputs = SMALL.inputs(torch.float64)
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    updates, expected = compiled(q, k, v), reference(q, k, v)[0] * 2
    torch.testing.assert_close(updates, expected)
    for actual, grad in zip(
        torch.autograd.grad(updates.sum(), (q, k, v)),
        torch.autograd.grad(expected.sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(actual, grad)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


EXPECTED_SHAPES = r"slot_attention: expected q \[B,K,D\], k \[B,N,D\], v \[B,N,E\], got "
Q, K, V = zeros(2, 3, 4), zeros(2, 5, 4), zeros(2, 5, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": zeros(3, 4)}, EXPECTED_SHAPES + r"\[3, 4\], \[2, 5, 4\], \[2, 5, 6\]"),
        ({"q": zeros(1, 3, 4)}, EXPECTED_SHAPES + r"\[1, 3, 4\]"),
        ({"q": zeros(2, 3, 5)}, EXPECTED_SHAPES + r"\[2, 3, 5\]"),
        ({"v": zeros(2, 6, 6)}, EXPECTED_SHAPES),
        ({"k": K.long()}, "slot_attention: k: expected floating point, got torch.int64"),
        (
            {"logit_bias": zeros(2, 4)},
            r"slot_attention: logit_bias: expected \[2, 3\], got \[2, 4\]",
        ),
        (
            {"logit_bias": zeros(2, 3).long()},
            "logit_bias: expected floating point, got torch.int64",
        ),
        ({"slot_mask": zeros(2, 3)}, "slot_mask: expected torch.bool, got torch.float32"),
        ({"slot_mask": zeros(3).bool()}, r"slot_mask: expected \[2, 3\], got \[3\]"),
        ({"v": V.to("meta")}, "slot_attention: v: expected cpu, got meta"),
        ({"backend": "cuda"}, "backend: expected auto, native or reference, got 'cuda'"),
    ],
)
def test_error_messages(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slot_attention(**{"q": Q, "k": K, "v": V, **arguments})  # type: ignore[call-overload]


@needs_native
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (zeros(3, 4), K, V, None, None),
            r"expected q \[B,K,D\], k \[B,N,D\] and v \[B,N,E\], got",
        ),
        ((zeros(2, 3, 5), K, V, None, None), "q and k differ in batch or width"),
        ((Q, K, zeros(2, 6, 6), None, None), "k and v differ in batch or pixels"),
        ((Q, K, V.double(), None, None), "v: expected Float on cpu, got Double on cpu"),
        ((Q, K, V, zeros(2, 4), None), r"logit_bias: expected \[2, 3\], got \[2, 4\]"),
        ((Q, K, V, None, zeros(2, 3)), "slot_mask: expected Bool on cpu, got Float on cpu"),
    ],
)
def test_error_messages_of_the_native_operator(
    arguments: tuple[Tensor | None, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.emorl.slot_attention.default(*arguments, 1e-8, False)


def test_native_is_built_where_a_compiler_exists() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler on this machine")
    assert NATIVE_OBSTACLE is None


def test_auto_falls_back_and_explicit_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_library._native["slot_attention"], "cpu", "there is no compiler here")
    assert backends()["slot_attention"] == {
        "native": "there is no compiler here",
        "reference": None,
    }
    torch.testing.assert_close(slot_attention(Q, K, V), reference(Q, K, V)[0])
    with pytest.raises(ValueError, match="'native' cannot run: there is no compiler here"):
        slot_attention(Q, K, V, backend="native")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "was never built"),
        ({"native": False, "reason": "cmake not found"}, "was not built: cmake not found"),
        ({"native": True, "torch": "2.0.0"}, "was built for torch 2.0.0, this is torch"),
    ],
)
def test_extension_is_refused_with_a_reason(
    record: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_library, "build_record", lambda: record)
    assert reason in str(_library._load_obstacle())
