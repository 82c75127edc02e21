"""Slot attention as a module: ours, and lucidrains' from PyPI, with the same weights and noise.

`pip install slot-attention` (MIT); nothing of it is here.

Legend: B batch, N inputs, D width, K slots.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emorl.bench.cases.normals import normals
from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.bench.ops.cases import name_of
from emorl.bench.ops.forms import compiler_obstacle, obstacle
from emorl.bench.ops.operators import Inputs, Results
from emorl.bench.ops.steps import Seen, loss_of, timed
from emorl.bench.passes import BOTH, PARTS
from emorl.bench.workers import TimedStep
from emorl.compat.lucidrains import SlotAttention
from emorl.ops.library import NARROW

NAME = "slot_attention_block"
PACKAGE = "slot_attention"
ITERATIONS = 3
VARIANTS = ("native", "lucidrains", "compiled", "lucidrains compiled")


class Block(NamedTuple):
    """Sizes of the inputs [B, N, D], the number of slots, and the dtype of both and the weights."""

    batch: int
    inputs: int
    width: int
    slots: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        sizes = f"B{self.batch}N{self.inputs}D{self.width}K{self.slots}"
        return f"{NAME} {sizes} {name_of(self.dtype)}"


# CLEVR6 at 64 x 64, the package's example, patches of a vision transformer, Tetrominoes, a grid of
# features, and one so small that Python and the recurrent update are most of it.
_SIZES = [
    Block(4, 4096, 64, 7),
    Block(2, 1024, 512, 5),
    Block(16, 196, 768, 11),
    Block(32, 1225, 64, 4),
    Block(32, 256, 256, 7),
    Block(64, 49, 64, 7),
]
BLOCKS = [x._replace(dtype=dtype) for dtype in (torch.float32, *NARROW) for x in _SIZES]


def obstacle_of(block: Block, variant: str, device: str) -> str | None:
    """Why a variant cannot run, if it cannot."""
    if (device, block.dtype) == ("cpu", torch.float16) and not _multiplies_float16():
        return "this CPU has no products of float16, which PyTorch then computes one by one"
    if "compiled" in variant and (reason := compiler_obstacle(device)):
        return reason
    if "lucidrains" in variant:
        missing = "not installed; pip install slot-attention"
        return None if importlib.util.find_spec(PACKAGE) else missing
    case = SlotAttentionCase(block.batch, block.slots, block.inputs, block.width)
    return obstacle("native", "slot_attention", device, case)


def _multiplies_float16() -> bool:
    asked = getattr(torch.cpu, "get_capabilities", None)  # torch 2.11 may have none
    capabilities: Mapping[str, bool] = asked() if asked else {}
    return any(capabilities.get(name) for name in ("avx512_fp16", "amx_fp16"))


def steps_of(
    block: Block, variant: str, device: str, parts: Sequence[str] = PARTS
) -> dict[str, TimedStep]:
    """The steps of a variant, by part."""
    module: Any = module_of(block, variant).to(device, block.dtype)
    weights = [*module.parameters()]
    if "compiled" in variant:
        same_noise: dict[str, Any] = {"fallback_random": True}
        module = torch.compile(module, dynamic=False, options=same_noise)
    x = normals(block.dtype, device)(block.batch, block.inputs, block.width)
    calls = {part: partial(_call, module, weights, part=part) for part in parts}
    moved = x.nbytes

    def look(_: str, results: Results) -> Seen:
        return Seen(loss_of(results), moved)

    torch.manual_seed(1)
    return timed(calls, {"x": x.requires_grad_()}, look)


def module_of(block: Block, variant: str) -> nn.Module:
    """Ours, or lucidrains' with the weights of ours."""
    torch.manual_seed(0)
    ours = SlotAttention(block.slots, block.width, ITERATIONS, backend="native")
    if "lucidrains" not in variant:
        return ours
    package = importlib.import_module(PACKAGE)
    theirs: nn.Module = package.SlotAttention(block.slots, block.width, ITERATIONS)
    theirs.load_state_dict(ours.state_dict())
    return theirs


def _call(module: Any, weights: list[Tensor], inputs: Inputs, part: str) -> Results:
    """The gradients of all weights are taken; those of the inputs are comparable."""
    with torch.set_grad_enabled(part == BOTH):
        output = module(inputs["x"])
    if part != BOTH:
        return Results(output, ())
    leaves = [inputs["x"], *weights]
    gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
    return Results(output.detach(), gradients[:1])
