"""Compile an operator's Triton kernels, as they are launched, for GPUs that need not be there.

    python tests/ops/compile_triton.py <operator> extremes|grid

Prints one JSON object a line: each kernel that was compiled, and each case that was refused. A
process of its own, since Triton decides when a kernel is defined whether to interpret it.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from emorl.ops import library
from emorl.ops.mixture_nll import _limits
from emorl.ops.triton import limits

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # that a program can have, by architecture
EVERY_GPU = 48 * 1024  # bytes of shared memory
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """A call of an operator's launchers with tensors that have shapes alone.

    `kind` tells cases apart that differ in options, `size` those that differ in sizes.
    """

    dtype: torch.dtype
    kind: str
    size: tuple[int, ...]
    refusal: Callable[[], str | None]
    launch: Callable[[], None]
    shared: Callable[[], int] = lambda: EVERY_GPU  # what the operator counts on


@dataclass(frozen=True)
class AbsentGPU:
    """What Triton asks of a driver in order to compile."""

    capability: int

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def pretend(capability: int) -> None:
    """Let Triton compile, and the operators' limits judge, for this architecture."""
    driver.set_active(AbsentGPU(capability))
    library.shared_memory = lambda device: SHARED_MEMORY[capability]


def compile_case(case: Case) -> list[dict[str, Any]]:
    """What became of a case: one record for each kernel launched, or the refusal."""
    about = {"dtype": str(case.dtype).removeprefix("torch."), "kind": case.kind, "size": case.size}
    refusal = case.refusal()
    if refusal is not None:
        return [{**about, "refused": refusal}]
    records: list[dict[str, Any]] = []

    def compile_only(kernel: JITFunction, *arguments: Any, **options: Any) -> None:
        start, record = time.perf_counter(), {**about, "kernel": kernel.__name__}
        records.append(record)
        try:
            code = kernel.run(*arguments, grid=None, warmup=True, **options)
        except Exception as error:
            record["failed"] = f"{type(error).__name__}: {error}"[:200]
        else:
            record |= {"cubin": len(code.asm["cubin"]), "shared": code.metadata.shared}
            if code.metadata.shared > case.shared():
                record["failed"] = f"{code.metadata.shared} bytes of {case.shared()} expected"
        record["seconds"] = round(time.perf_counter() - start, 2)

    JITFunction.__getitem__ = lambda kernel, grid: partial(compile_only, kernel)
    case.launch()
    return records


def empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def slot_attention(dtype: torch.dtype, slots: int, key_width: int, value_width: int | None) -> Case:
    """With bias and mask, and all gradients; without a value width, one tensor is k and v."""
    launcher = importlib.import_module("emorl.ops.triton.slot_attention")
    q, k = empty(dtype, 2, slots, key_width), empty(dtype, 2, 131, key_width)
    v = None if value_width is None else empty(dtype, 2, 131, value_width)
    bias, mask = empty(dtype, 2, slots), empty(torch.bool, 2, slots)

    def launch() -> None:
        updates, mass, _ = launcher.forward(q, k, v, bias, mask, 1e-8, True)
        wanted = [True, True, v is not None, True]
        launcher.backward(updates, q, k, v, bias, mask, updates, mass, 1e-8, wanted)

    def shared() -> int:
        return limits.slot_attention_layout(*sizes, library.shared_memory(q.device)).shared

    sizes = slots, max(key_width, value_width or 0), dtype
    kind, size = "shared" if v is None else "apart", (slots, key_width, value_width or key_width)
    refusal = partial(limits.slot_attention, *sizes, q.device)
    return Case(dtype, kind, size, refusal, launch, shared)


def mixture_nll(dtype: torch.dtype, slots: int, channels: int, kind: str) -> Case:
    """With the gradient and, where there is such a thing, one sigma a slot."""
    launcher = importlib.import_module("emorl.ops.triton.mixture_nll")
    wide = torch.promote_types(dtype, torch.float32)
    image, rgb = empty(wide, 2, channels, 9, 9), empty(dtype, 2, slots, channels, 9, 9)
    mask = empty(dtype, 2, slots, 1, 9, 9)
    sigma = None if kind == "gaussian" else empty(wide, slots)

    def launch() -> None:
        launcher.forward(image, rgb, mask, sigma, 0.1, kind, True, False, 1.0)

    return Case(dtype, kind, (slots, channels), lambda: _limits(image, rgb)["triton"], launch)


def spatial_broadcast(
    dtype: torch.dtype, channels: int, activation: str, border: bool, channels_last: bool
) -> Case:
    launcher = importlib.import_module("emorl.ops.triton.spatial_broadcast")
    slot = empty(dtype, 3, channels, *((3, 3) if border else ()))
    shape = (9, 10, channels) if channels_last else (channels, 9, 10)
    position = empty(dtype, *shape)
    position = position.movedim(-1, 0) if channels_last else position

    def launch() -> None:
        output = launcher.forward(slot, position, activation)
        launcher.backward(output, output, slot, activation, [True, True])

    names = (activation, "border" if border else "vector", "last" if channels_last else "first")
    return Case(dtype, "-".join(names), (channels,), lambda: None, launch)


def powers(first: int, last: int) -> list[int]:
    return [2**i for i in range(first.bit_length() - 1, last.bit_length())]


def widest(slots: int, dtype: torch.dtype) -> int:
    """The largest width, a power of two, that slot attention takes on the GPU chosen last."""
    fitting = [w for w in powers(16, 256) if slot_attention(dtype, slots, w, w).refusal() is None]
    return max(fitting, default=0)


def extremes(operator: str) -> Iterator[Case]:
    """For each dtype the smallest case and the largest allowed, and the next larger ones."""
    if operator == "slot_attention":
        for dtype in (torch.float32, torch.float64):  # narrower ones are converted
            width = widest(64, dtype)
            yield slot_attention(dtype, 1, 1, None)
            yield slot_attention(dtype, 64, width, width)
            yield slot_attention(dtype, 65, 1, 1)
            yield slot_attention(dtype, 64, width + 1, width)
            yield slot_attention(dtype, 64, width, width + 1)
    elif operator == "mixture_nll":
        for dtype in DTYPES:
            yield mixture_nll(dtype, 1, 1, "gaussian")
            yield mixture_nll(dtype, 64, 8, "mixture_joint")
            yield mixture_nll(dtype, 65, 8, "mixture")
            yield mixture_nll(dtype, 64, 9, "mixture")
    else:  # takes every size; its kernels differ up to 64 channels
        for dtype in DTYPES:
            yield spatial_broadcast(dtype, 1, "none", False, False)
            yield spatial_broadcast(dtype, 64, "elu", True, True)


def grid(operator: str) -> Iterator[Case]:
    """All sizes, in powers of two, as the kernels round up to them, and options at some sizes."""
    if operator == "slot_attention":
        for dtype, slots in itertools.product((torch.float32, torch.float64), powers(16, 64)):
            for width in powers(16, 256):
                yield slot_attention(dtype, slots, width, width)
            yield slot_attention(dtype, slots, 64, None)
            yield slot_attention(dtype, slots, 256, None)
        for dtype in (torch.float32, torch.float64):
            yield slot_attention(dtype, 64, 16, 256)
            yield slot_attention(dtype, 64, 256, 16)
    elif operator == "mixture_nll":
        for dtype, slots in itertools.product(DTYPES, powers(1, 64)):
            for kind in ("gaussian", "mixture", "mixture_joint"):
                yield mixture_nll(dtype, slots, 3, kind)
        for dtype, slots, channels in itertools.product(DTYPES, (1, 64), (1, 8)):
            yield mixture_nll(dtype, slots, channels, "mixture")
    else:
        for dtype, border in itertools.product(DTYPES, (False, True)):
            for channels in powers(1, 64):
                yield spatial_broadcast(dtype, channels, "elu", border, True)
            for channels in powers(1, 4):
                yield spatial_broadcast(dtype, channels, "elu", border, False)
            yield spatial_broadcast(dtype, 64, "relu", border, True)
            yield spatial_broadcast(dtype, 64, "none", border, True)


def main(operator: str, cases: str) -> None:
    """Print what became of each case on each architecture."""
    for capability in SHARED_MEMORY:
        about = {"operator": operator, "capability": capability, "triton": triton.__version__}
        pretend(capability)
        for case in {"extremes": extremes, "grid": grid}[cases](operator):
            for record in compile_case(case):
                print(json.dumps({**about, **record}))


if __name__ == "__main__":
    main(*sys.argv[1:])
