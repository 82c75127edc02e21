"""Slot attention on drawn shapes, dtypes, strides and options; and how much memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_testing import (  # noqa: F401
    DEVICE,
    allocations,
    backend_params,
    skip_where_native_is_refused,
    unwritten_outputs_are_nan,
)
from slot_attention_testing import cotangent, roundings
from torch import Tensor

from emorl.bench.accuracy import assert_as_accurate_as_plain
from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.ops import library, slot_attention

COMPILED = backend_params("slot_attention", compiled=True)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Draw:
    """Sizes of a head and options; `strides`: 0 contiguous, 1 transposed, 2 every second one."""

    batch: int
    slots: int
    pixels: int
    key_width: int
    value_width: int | None
    heads: int
    joint: bool
    strides: int
    biased: bool
    masked: bool
    eps: float


draws = st.builds(
    Draw,
    batch=st.integers(0, 3),
    slots=st.integers(0, 19),
    pixels=st.integers(1, 150),
    key_width=st.integers(0, 20),
    value_width=st.none() | st.integers(0, 20),
    heads=st.integers(1, 3),
    joint=st.booleans(),
    strides=st.integers(0, 2),
    biased=st.booleans(),
    masked=st.booleans(),
    eps=st.sampled_from([1e-8, 1e-2]),
)


def strided(shape: tuple[int, ...], strides: int, generator: torch.Generator) -> Tensor:
    if strides == 1:
        shape = (*shape[:-2], shape[-1], shape[-2])
    elif strides == 2:
        shape = (*shape[:-1], shape[-1] * 2)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.mT if strides == 1 else values[..., :: max(1, strides)]


def tensors(draw: Draw) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(draw.pixels)
    widths = {"k": draw.key_width, "v": draw.value_width}
    drawn = {
        name: strided((draw.batch, draw.pixels, draw.heads * width), draw.strides, generator)
        for name, width in widths.items()
        if width is not None
    }
    shape = (draw.batch, draw.slots, draw.heads * draw.key_width)
    drawn["q"] = strided(shape, draw.strides, generator)
    if draw.biased:
        drawn["logit_bias"] = torch.randn(shape[:2], generator=generator, dtype=torch.float64)
    return drawn


def mask_of(draw: Draw) -> Tensor | None:
    mask = torch.arange(draw.batch * draw.slots).view(draw.batch, draw.slots) % 3 != 1
    return mask.to(DEVICE) if draw.masked else None


def results(draw: Draw, inputs: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    updates, attention = slot_attention(
        inputs["q"],
        inputs["k"],
        inputs.get("v", inputs["k"]),
        eps=draw.eps,
        logit_bias=inputs.get("logit_bias"),
        slot_mask=mask_of(draw),
        heads=draw.heads,
        softmax_over="slots_heads" if draw.joint else "slots",
        return_attention=True,
        backend=backend,
    )
    grads = torch.autograd.grad((updates * cotangent(updates)).sum(), list(inputs.values()))
    named = {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)}
    return {"updates": updates.detach(), "attention": attention, **named}


def drawn(examples: int) -> Callable[[Any], Any]:
    """Call a test with so many draws, the same ones each time."""
    chosen = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    return lambda test: chosen(given(draw=draws, dtype=st.sampled_from(DTYPES))(test))


def check(draw: Draw, dtype: torch.dtype, backend: str) -> None:
    inputs = {name: x.to(DEVICE, dtype) for name, x in tensors(draw).items()}
    truth = results(draw, {name: x.double() for name, x in inputs.items()}, "reference")
    plain = results(draw, inputs, "reference")
    allowed = roundings(
        inputs,
        truth["attention"],
        eps=draw.eps,
        slot_mask=mask_of(draw),
        heads=draw.heads,
        joint=draw.joint,
    )
    assert_as_accurate_as_plain(results(draw, inputs, backend), plain, truth, allowed)


@pytest.mark.parametrize("backend", [x for x in COMPILED if x.values[0] == "native"])
@drawn(60)
def test_drawn_inputs(backend: str, draw: Draw, dtype: torch.dtype) -> None:
    check(draw, dtype, backend)


@pytest.mark.parametrize("backend", [x for x in COMPILED if x.values[0] == "triton"])
@drawn(60 if DEVICE == "cuda" else 6)  # the interpreter takes seconds for one
def test_drawn_inputs_of_triton(backend: str, draw: Draw, dtype: torch.dtype) -> None:
    check(draw, dtype, backend)


@pytest.mark.skipif(DEVICE != "cpu", reason="the profiler's memory records are read for the CPU")
@pytest.mark.parametrize("value_width", [None, 16], ids=["shared", "separate"])
def test_native_allocates_nothing_of_the_attention_s_size(value_width: int | None) -> None:
    """All allocations together stay below results and half a [B, K, N]."""
    skip_where_native_is_refused("slot_attention")
    case = SlotAttentionCase(2, 40, 4096, 16, value_width)
    inputs = case.inputs()
    v = inputs.get("v", inputs["k"])
    kept: list[Tensor] = []

    def step() -> None:
        updates = slot_attention(inputs["q"], inputs["k"], v, backend="native")
        leaves = [x for name, x in inputs.items() if name != "logit_bias"]
        kept.extend((updates, *torch.autograd.grad(updates.sum(), leaves)))

    allocated = sum(allocations(step))
    attention = 4 * case.batch * case.slots * case.pixels
    assert sum(x.nbytes for x in kept[1:]) <= allocated
    assert allocated < sum(x.nbytes for x in kept) + attention / 2


@pytest.mark.skipif(DEVICE != "cpu", reason="the profiler's memory records are read for the CPU")
@pytest.mark.parametrize("value_width", [None, 24], ids=["shared", "separate"])
def test_native_makes_no_float32_copies(value_width: int | None) -> None:
    """No allocation is larger than the largest argument, where the kernels are a GPU's."""
    skip_where_native_is_refused("slot_attention")
    inputs = SlotAttentionCase(2, 4, 2048, 16, value_width).inputs(torch.bfloat16)
    if not library.on_gpu(inputs["q"]):
        pytest.skip("the CPU's kernels read float32 copies")
    k, v = inputs["k"], inputs.get("v", inputs["k"])

    def step() -> None:
        updates = slot_attention(inputs["q"], k, v, backend="native")
        torch.autograd.grad(updates.sum(), [inputs["q"], k, *([] if v is k else [v])])

    assert max(allocations(step)) == max(k.nbytes, v.nbytes)
