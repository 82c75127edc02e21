"""Slot attention as a module: ours, and lucidrains' from PyPI, with the same weights and noise.

`pip install slot-attention` (MIT); nothing of it is here.

Legend: B batch, N inputs, D width, K slots.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emorl.bench.cases.normals import normals
from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.bench.ops.forms import compiler_obstacle, obstacle
from emorl.bench.ops.operators import Inputs, Results
from emorl.bench.ops.steps import Seen, loss_of, timed
from emorl.bench.passes import BOTH, PARTS
from emorl.bench.workers import TimedStep
from emorl.models.slot_attention.attention import SlotAttention
from emorl.ops import Backend

NAME = "slot_attention_block"
PACKAGE = "slot_attention"
ITERATIONS = 3
VARIANTS = ("native", "lucidrains", "compiled", "lucidrains compiled")


class Block(NamedTuple):
    """Sizes of the inputs [B, N, D], and the number of slots."""

    batch: int
    inputs: int
    width: int
    slots: int

    def __str__(self) -> str:
        return f"{NAME} B{self.batch}N{self.inputs}D{self.width}K{self.slots} float32"


# CLEVR6 at 64 x 64, the package's example, patches of a vision transformer, Tetrominoes.
BLOCKS = [
    Block(4, 4096, 64, 7),
    Block(2, 1024, 512, 5),
    Block(16, 196, 768, 11),
    Block(32, 1225, 64, 4),
    Block(32, 256, 256, 7),
]


class OurBlock(nn.Module):
    """Our module with initial slots that are drawn as lucidrains' are.

    Args:
        block: its sizes.
        backend: of the operator.
    """

    def __init__(self, block: Block, backend: Backend = "native") -> None:
        super().__init__()
        self.slots = block.slots
        self.mean = nn.Parameter(0.1 * torch.randn(1, 1, block.width))
        self.log_sigma = nn.Parameter(0.1 * torch.randn(1, 1, block.width))
        hidden = max(block.width, 128)
        self.attention = SlotAttention(block.width, block.width, hidden, backend=backend)

    def forward(self, inputs: Tensor) -> Tensor:
        """Slots [B, K, D] of inputs [B, N, D]."""
        shape = (inputs.shape[0], self.slots, inputs.shape[2])
        noise = torch.randn(shape, dtype=inputs.dtype, device=inputs.device)
        first = self.mean + self.log_sigma.exp() * noise
        return self.attention(inputs, first, ITERATIONS).slots[-1]


def obstacle_of(block: Block, variant: str, device: str) -> str | None:
    """Why a variant cannot run, if it cannot."""
    if "compiled" in variant and (reason := compiler_obstacle(device)):
        return reason
    if "lucidrains" in variant:
        missing = "not installed; pip install slot-attention"
        return None if importlib.util.find_spec(PACKAGE) else missing
    case = SlotAttentionCase(block.batch, block.slots, block.inputs, block.width)
    return obstacle("native", "slot_attention", device, case)


def steps_of(
    block: Block, variant: str, device: str, parts: Sequence[str] = PARTS
) -> dict[str, TimedStep]:
    """The steps of a variant, by part."""
    module: Any = module_of(block, variant).to(device)
    weights = [*module.parameters()]
    if "compiled" in variant:
        same_noise: dict[str, Any] = {"fallback_random": True}
        module = torch.compile(module, dynamic=False, options=same_noise)
    x = normals(torch.float32, device)(block.batch, block.inputs, block.width)
    calls = {part: partial(_call, module, weights, part=part) for part in parts}
    moved = x.nbytes

    def look(_: str, results: Results) -> Seen:
        return Seen(loss_of(results), moved)

    torch.manual_seed(1)
    return timed(calls, {"x": x.requires_grad_()}, look)


def module_of(block: Block, variant: str) -> nn.Module:
    """Ours, or lucidrains' with the weights of ours."""
    torch.manual_seed(0)
    ours = OurBlock(block)
    return _lucidrains(block, ours) if "lucidrains" in variant else ours


def _call(module: Any, weights: list[Tensor], inputs: Inputs, part: str) -> Results:
    """The gradients of all weights are taken; those of the inputs are comparable."""
    with torch.set_grad_enabled(part == BOTH):
        output = module(inputs["x"])
    if part != BOTH:
        return Results(output, ())
    leaves = [inputs["x"], *weights]
    gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
    return Results(output.detach(), gradients[:1])


def _lucidrains(block: Block, ours: OurBlock) -> nn.Module:
    """Their module; what ours lacks, the biases of queries, keys and values, is zero."""
    package = importlib.import_module(PACKAGE)
    own = ours.attention
    hidden = own.mlp[0].out_features
    theirs: Any = package.SlotAttention(block.slots, block.width, ITERATIONS, hidden_dim=hidden)
    pairs: dict[str, Any] = {
        "to_q": own.query,
        "to_k": own.key,
        "to_v": own.value,
        "gru": own.gru,
        "mlp": own.mlp,
        "norm_input": own.norm_inputs,
        "norm_slots": own.norm_slots,
        "norm_pre_ff": own.norm_mlp,
    }
    state = {name: torch.zeros_like(weight) for name, weight in theirs.state_dict().items()}
    state |= {"slots_mu": ours.mean, "slots_logsigma": ours.log_sigma}
    for name, module in pairs.items():
        state |= {f"{name}.{key}": weight for key, weight in module.state_dict().items()}
    theirs.load_state_dict(state)
    return theirs
