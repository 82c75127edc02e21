"""Slot attention as an operator: opcheck, torch.compile, errors, the choice of a backend."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from op_testing import (  # noqa: F401
    DEVICE,
    backend_params,
    skip_where_native_is_refused,
    unwritten_outputs_are_nan,
)
from torch import Tensor

from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.ops import backends, extension, library, slot_attention
from emorl.ops.slot_attention import reference

BACKENDS = backend_params("slot_attention")
COMPILED = backend_params("slot_attention", compiled=True)
OPERATOR = {"native": "slot_attention", "triton": "slot_attention_triton"}
NATIVE_ON_CPU = backends()["slot_attention"]["native"]
SMALL = SlotAttentionCase(2, 3, 5, 4, 6)


def op_arguments(
    case: SlotAttentionCase, requires_grad: bool, stored: torch.dtype
) -> tuple[Tensor | None, ...]:
    """The operator's tensors in float32, but k and v as they are stored."""
    inputs = {
        name: x.detach().to(stored if name in "kv" else x.dtype).requires_grad_(requires_grad)
        for name, x in case.inputs(device=DEVICE).items()
    }
    return inputs["q"], inputs["k"], inputs.get("v"), inputs["logit_bias"], None


def skip_unless_read(stored: torch.dtype, backend: str) -> None:
    """Narrow k and v are for the native kernels of a GPU."""
    on_gpu = library.on_gpu(torch.empty(0, device=DEVICE))
    if stored in library.NARROW and not (backend == "native" and on_gpu):
        pytest.skip("this backend's operator takes float32 and float64")


STORED = pytest.mark.parametrize("stored", [torch.float32, *library.NARROW], ids=str)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("case", [SMALL, SlotAttentionCase(2, 3, 5, 4)], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
@STORED
def test_opcheck_forward(
    case: SlotAttentionCase, requires_grad: bool, stored: torch.dtype, backend: str
) -> None:
    skip_unless_read(stored, backend)
    op = getattr(torch.ops.emorl, OPERATOR[backend]).default
    torch.library.opcheck(op, (*op_arguments(case, requires_grad, stored), 1e-8, requires_grad))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("case", [SMALL, SlotAttentionCase(2, 3, 5, 4)], ids=str)
@STORED
def test_opcheck_backward(case: SlotAttentionCase, stored: torch.dtype, backend: str) -> None:
    skip_unless_read(stored, backend)
    arguments = op_arguments(case, False, stored)
    forward = getattr(torch.ops.emorl, OPERATOR[backend]).default
    updates, mass, _ = forward(*arguments, 1e-8, False)
    op = getattr(torch.ops.emorl, f"{OPERATOR[backend]}_backward").default
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

    inputs = SMALL.inputs(torch.float64, DEVICE)
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    updates, expected = compiled(q, k, v), reference(q, k, v)[0] * 2
    torch.testing.assert_close(updates, expected)
    for actual, grad in zip(
        torch.autograd.grad(updates.sum(), (q, k, v)),
        torch.autograd.grad(expected.sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(actual, grad)


@pytest.mark.parametrize("backend", ["auto", *COMPILED])
@pytest.mark.parametrize("dtype", library.NARROW, ids=["bf16", "f16"])
def test_compiled_narrow_arguments(dtype: torch.dtype, backend: str) -> None:
    def results(attend: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [SMALL.inputs(dtype, DEVICE)[name] for name in "qkv"]
        updates = attend(*leaves, backend=backend)
        return (updates, *torch.autograd.grad(updates.float().square().sum(), leaves))

    compiled = results(torch.compile(slot_attention, fullgraph=True, backend="aot_eager"))
    assert {x.dtype for x in compiled} == {dtype}
    torch.testing.assert_close(compiled, results(slot_attention), rtol=0, atol=0)


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
        ({"k": K.long()}, "slot_attention: k: expected float32, .*, got int64"),
        (
            {"logit_bias": zeros(2, 4)},
            r"slot_attention: logit_bias: expected \[2, 3\], got \[2, 4\]",
        ),
        (
            {"logit_bias": zeros(2, 3).long()},
            "logit_bias: expected float32, .*, got int64",
        ),
        ({"slot_mask": zeros(2, 3)}, "slot_mask: expected torch.bool, got torch.float32"),
        ({"slot_mask": zeros(3).bool()}, r"slot_mask: expected \[2, 3\], got \[3\]"),
        ({"heads": 3}, "heads: expected a common divisor of the widths 4 and 6, got 3"),
        ({"heads": 0}, "heads: expected a common divisor of the widths 4 and 6, got 0"),
        ({"softmax_over": "pixels"}, "softmax_over: expected slots or slots_heads, got 'pixels'"),
        ({"v": V.to("meta")}, "slot_attention: v: expected cpu, got meta"),
        ({"backend": "cuda"}, "expected one of auto, native, triton, reference, got 'cuda'"),
    ],
)
def test_error_messages(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slot_attention(**{"q": Q, "k": K, "v": V, **arguments})  # type: ignore[call-overload]


@pytest.mark.skipif(NATIVE_ON_CPU is not None, reason=str(NATIVE_ON_CPU))
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
        ((Q, K.half(), V, None, None), "v: expected Half on cpu, got Float on cpu"),
        ((Q.double(), K.half(), None, None, None), "k: expected Double on cpu, got Half on cpu"),
        ((Q.half(), K.half(), None, None, None), "q: expected Float or Double, got Half"),
        ((Q, K, V, zeros(2, 4), None), r"logit_bias: expected \[2, 3\], got \[2, 4\]"),
        ((Q, K, V, None, zeros(2, 3)), "slot_mask: expected Bool on cpu, got Float on cpu"),
    ],
)
def test_error_messages_of_the_native_operator(
    arguments: tuple[Tensor | None, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.emorl.slot_attention.default(*arguments, 1e-8, False)


@pytest.mark.skipif(NATIVE_ON_CPU is not None, reason=str(NATIVE_ON_CPU))
def test_operator_of_the_cpu_refuses_narrow_keys() -> None:
    ops, arguments = torch.ops.emorl, (Q, K.bfloat16(), V.bfloat16(), None, None)
    message = "slot_attention: k: expected Float on cpu, got BFloat16 on cpu"
    with pytest.raises(ValueError, match=message):
        ops.slot_attention.default(*arguments, 1e-8, False)
    grad, mass = zeros(2, 3, 6), zeros(2, 3)
    with pytest.raises(ValueError, match=message):
        ops.slot_attention_backward.default(grad, *arguments, grad, mass, 1e-8, [True] * 4)


@pytest.mark.skipif(NATIVE_ON_CPU is not None, reason=str(NATIVE_ON_CPU))
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"updates": zeros(2, 3, 5)}, r"updates: expected \[2, 3, 6\], got \[2, 3, 5\]"),
        ({"mass": zeros(2, 4)}, r"mass: expected \[2, 3\], got \[2, 4\]"),
        ({"grad": zeros(2, 3)}, r"gradient of updates: expected \[2, 3, 6\], got \[2, 3\]"),
        ({"updates": zeros(2, 3, 6).double()}, "updates: expected Float on cpu, got Double on cpu"),
        ({"mass": zeros(2, 3).double()}, "mass: expected Float on cpu, got Double on cpu"),
        ({"grad": zeros(2, 3, 6).double()}, "of updates: expected Float on cpu, got Double on cpu"),
    ],
)
def test_error_messages_of_the_native_backward(arguments: dict[str, Tensor], message: str) -> None:
    given = {"grad": zeros(2, 3, 6), "updates": zeros(2, 3, 6), "mass": zeros(2, 3), **arguments}
    with pytest.raises(ValueError, match=f"slot_attention: .*{message}"):
        torch.ops.emorl.slot_attention_backward.default(
            given["grad"], Q, K, V, None, None, given["updates"], given["mass"], 1e-8, [True] * 4
        )


def test_native_is_built_where_a_compiler_exists() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler on this machine")
    skip_where_native_is_refused("slot_attention")
    assert NATIVE_ON_CPU is None


def test_auto_falls_back_and_explicit_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "there is no compiler here"
    monkeypatch.setitem(library.obstacles["slot_attention"]["native"], "cpu", reason)
    assert backends()["slot_attention"]["native"] == reason
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
    monkeypatch.setattr(extension, "build_record", lambda: record)
    assert reason in str(extension._load_obstacle())
