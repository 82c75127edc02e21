"""The training steps that are measured: of official configurations, at other batches and sizes.

A variant names how a GPU computes: "float32", "tf32" or "bf16", then " graph" for a CUDA graph or
" compiled" for `torch.compile`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from emorl.bench.workers import Step
from emorl.models import EfficientMORL, EfficientMORLConfig
from emorl.training.config_file import find_config, load_config
from emorl.training.graph import GraphedStep

ON_GPU = ("float32", "tf32", "bf16", "tf32 graph", "bf16 graph")


@dataclass(frozen=True)
class Case:
    """A configuration's network at a batch size and a number of refinement steps.

    `chunk` is emorl's `score_chunk`, 0 for none; `size` the side of the images, 0 for the
    configuration's.
    """

    config: str
    batch: int
    steps: int
    chunk: int = 0
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> Case:
        """From "clevr6:2:3", or "clevr6:2:3:7" with a chunk."""
        config, *numbers = text.split(":")
        return cls(config, *map(int, numbers))

    def __str__(self) -> str:
        size = f" {self.size}x{self.size}" if self.size else ""
        chunk = f", score_chunk {self.chunk}" if self.chunk else ""
        return f"{self.config}{size}, batch {self.batch}, I={self.steps}{chunk}"

    def network(self) -> EfficientMORLConfig:
        """The configuration of the network."""
        config: EfficientMORLConfig = load_config(find_config(self.config)).network
        side = (self.size, self.size) if self.size else config.image_size
        return replace(
            config,
            image_size=side,
            refinement_steps=self.steps,
            score_chunk=self.chunk or None,
        )

    def build(self, device: str = "cpu") -> tuple[EfficientMORL, Tensor]:
        """The network and a batch of noise, the same each time."""
        torch.manual_seed(0)
        config = self.network()
        model = EfficientMORL(config).to(device)
        return model, torch.rand(self.batch, 3, *config.image_size).to(device)


def training_step(
    model: nn.Module, objective: Callable[[], Tensor], fused: bool | None = True
) -> Step:
    """Forward, backward, clipping and Adam; the step returns its loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)

    def step() -> float:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return float(loss.detach())

    return step


def set_precision(variant: str) -> None:
    """Set the precision of the GPU's matrix products for a variant; does nothing on the CPU."""
    narrow = not variant.startswith("float32")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = narrow


def autocast(variant: str, device: str) -> AbstractContextManager[object]:
    """Where the networks over pixels compute in bfloat16, if the variant says so."""
    narrow = variant.startswith("bf16")
    return torch.autocast(device, torch.bfloat16) if narrow else nullcontext()


def compile_networks(model: nn.Module) -> None:
    """Let `torch.compile` compile each network of a model by itself."""
    for network in model.children():
        network.compile()


def variant_step(model: EfficientMORL, images: Tensor, variant: str) -> Step:
    """A training step of a variant."""
    set_precision(variant)
    if variant.endswith("compiled"):
        compile_networks(model)
    if variant.endswith("graph"):
        return _graphed_step(model, images, variant)

    def loss() -> Tensor:
        with autocast(variant, images.device.type):
            return model.objective(images).loss

    return training_step(model, loss)


def _graphed_step(model: EfficientMORL, images: Tensor, variant: str) -> Step:
    noise = torch.Generator(images.device)

    def backward(images: Tensor, *_: Any) -> dict[str, Tensor]:
        with autocast(variant, images.device.type):
            loss = model.objective(images, generator=noise).loss
        loss.backward()
        return {"loss": loss.detach()}

    def clip() -> Tensor:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    step = GraphedStep(backward, clip, optimizer, noise)

    def seeded() -> float:
        noise.manual_seed(torch.initial_seed())  # the noise that the other variants draw
        return step(images, None, 0, {})["loss"]

    return seeded
