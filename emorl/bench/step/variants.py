"""The ways to compute a training step or an inference.

A variant names how ours computes: "float32", "tf32" or "bf16", then " graph" for a CUDA graph,
" compiled" for `torch.compile` or " chunked" for a quarter of the slots scored at a time; or it is
one of the released code's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from emorl.bench.turns import ROUNDING
from emorl.bench.workers import Step
from emorl.models import ObjectCentricModel
from emorl.training.config import TrainerConfig
from emorl.training.graph import GraphedStep
from emorl.training.optimizers import make_optimizers

RELEASED = "released"
FIRST_ORDER = "released, first-order"  # as released, but create_graph=False
_PRECISIONS = ("float32", "tf32", "bf16")
# By how much a loss may differ where factors are rounded: their rounding in each of about 20 layers
# that an image passes.
_ROUNDINGS = {"tf32": 20 * 2**-11, "bf16": 20 * 2**-8}
# Small, so that weights stay what they are; the time does not depend on it.
_RATE = 1e-4


def trained(device: str, can_be_captured: bool) -> list[str]:
    """The variants of our training step on a device; the first one is what others are compared to.

    Args:
        device: "cpu" or "cuda".
        can_be_captured: whether the model's optimiser can be part of a CUDA graph.
    """
    if device == "cpu":
        return ["float32"]
    graphs = [f"{precision} graph" for precision in _PRECISIONS] if can_be_captured else []
    return [*_PRECISIONS, *graphs, "tf32 compiled"]


def inferred(device: str) -> list[str]:
    """The variants of our inference on a device; as `trained`."""
    return ["float32"] if device == "cpu" else [*_PRECISIONS, "tf32 compiled"]


def rounding(variant: str, device: str) -> float:
    """By how much a variant's loss may differ from that of the first one, as a share."""
    if variant in (RELEASED, FIRST_ORDER) and device == "cuda":
        variant = "tf32"  # PyTorch's default for a GPU's convolutions
    return _ROUNDINGS.get(variant.split()[0], ROUNDING)


def set_precision(variant: str) -> None:
    """Set the precision of the GPU's matrix products for a variant; does nothing on the CPU."""
    narrow = not variant.startswith("float32")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = narrow


def training_step(
    model: nn.Module,
    objective: Callable[[], Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    clip_norm: float | None = 5.0,
) -> Step:
    """Forward, backward, clipping and optimisers; the step returns its loss."""
    limit = math.inf if clip_norm is None else clip_norm

    def step() -> float:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = objective()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        for optimizer in optimizers:
            optimizer.step()
        return float(loss.detach())

    return step


def variant_step(
    model: ObjectCentricModel, images: Tensor, variant: str, trainer: TrainerConfig
) -> Step:
    """A training step of ours, with the optimiser and the clipping of a configuration."""
    _prepare(model, variant)
    optimizers = make_optimizers(model.parameters(), trainer.optimizer, _RATE)
    if variant.endswith("graph"):
        return _graphed_step(model, images, variant, optimizers[0], trainer.clip_norm)

    def loss() -> Tensor:
        with _autocast(variant, images.device.type):
            return model.objective(images).loss

    return training_step(model, loss, optimizers, trainer.clip_norm)


def inference(model: ObjectCentricModel, images: Tensor, variant: str) -> Step:
    """An inference of ours without derivatives; the step returns the mean of its reconstruction."""
    _prepare(model, variant)
    model.eval()

    def infer() -> float:
        with torch.no_grad(), _autocast(variant, images.device.type):
            return float(model(images).reconstruction.mean())

    return infer


def released_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the released code: Adam as PyTorch has it by default."""
    return torch.optim.Adam(model.parameters(), lr=_RATE)


def _prepare(model: nn.Module, variant: str) -> None:
    """Set the precision, and compile each network by itself if the variant says so."""
    set_precision(variant)
    if variant.endswith("compiled"):
        for network in model.children():
            network.compile()


def _autocast(variant: str, device: str) -> AbstractContextManager[object]:
    """Where the networks over pixels compute in bfloat16, if the variant says so."""
    narrow = variant.startswith("bf16")
    return torch.autocast(device, torch.bfloat16) if narrow else nullcontext()


def _graphed_step(
    model: ObjectCentricModel,
    images: Tensor,
    variant: str,
    optimizer: torch.optim.Optimizer,
    clip_norm: float | None,
) -> Step:
    noise = torch.Generator(images.device)
    limit = math.inf if clip_norm is None else clip_norm

    def backward(images: Tensor, *_: Any) -> dict[str, Tensor]:
        with _autocast(variant, images.device.type):
            loss = model.objective(images, generator=noise).loss
        loss.backward()
        return {"loss": loss.detach()}

    def clip() -> Tensor:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), limit)

    step = GraphedStep(backward, clip, optimizer, noise)

    def seeded() -> float:
        noise.manual_seed(torch.initial_seed())  # the noise that the other variants draw
        return step(images, None, 0, {})["loss"]

    return seeded
