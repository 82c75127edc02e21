"""The networks whose steps are measured: configurations of all models, at other sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from emorl.models import MODELS as NETWORKS
from emorl.models import ModelConfig, ObjectCentricModel
from emorl.training.config import RunConfig
from emorl.training.config_file import find_config, load_config

# In their order in tables and legends.
MODELS = {
    "efficient_morl": "EfficientMORL",
    "slot_attention": "Slot Attention",
    "slot_mlp": "Slot MLP",
    "iodine": "IODINE",
    "monet": "MONet",
}
PUBLISHED = ("tetrominoes", "multi_dsprites", "clevr6")
_RELEASED = ("efficient_morl", "slot_attention")


@dataclass(frozen=True)
class Case:
    """A configuration's network at a batch size, with all that a step's cost depends on.

    Attributes:
        model: emorl's name of the model.
        config: the configuration that the network is of.
        size: side of the square images, in pixels.
        slots: K.
        steps: I, refinement steps; 0 for a model that does not refine.
        batch: images at once.
        chunk: emorl's `score_chunk`, 0 for none.
    """

    model: str
    config: str
    size: int
    slots: int
    steps: int
    batch: int
    chunk: int = 0

    @classmethod
    def of(cls, model: str, config: str, batch: int) -> Case:
        """A configuration as it is; I is that of its first training step.

        Raises:
            ValueError: if there is no such configuration.
        """
        run = configuration(model, config)
        network: Any = run.network
        steps = network.refinement_steps if NETWORKS[model].refines else 0
        if stages := run.trainer.curriculum.get("refinement_steps"):
            steps = stages[0][1]
        return cls(model, config, network.image_size[0], network.num_slots, int(steps), batch)

    @classmethod
    def parse(cls, text: str) -> Case:
        """EfficientMORL's, from "clevr6:2:3" (batch 2, I=3), or "clevr6:2:3:7" with a chunk.

        Raises:
            ValueError: if it is not of that form, or there is no such configuration.
        """
        config, *numbers = text.split(":")
        batch, steps, chunk = [*map(int, numbers), *([0] if len(numbers) == 2 else [])]
        return replace(cls.of("efficient_morl", config, batch), steps=steps, chunk=chunk)

    def __str__(self) -> str:
        refined = f"I={self.steps}, " if NETWORKS[self.model].refines else ""
        chunk = f", score_chunk {self.chunk}" if self.chunk else ""
        return (
            f"{MODELS[self.model]}, {self.config}, {self.size}x{self.size}, K={self.slots}, "
            f"{refined}batch {self.batch}{chunk}"
        )

    @property
    def is_released(self) -> bool:
        """Whether the released code can build the network; smaller ones are ours alone."""
        return self.model in _RELEASED and self.config in PUBLISHED

    def run_config(self) -> RunConfig:
        """The configuration of network and training."""
        run = configuration(self.model, self.config)
        changes: dict[str, Any] = {"image_size": (self.size, self.size), "num_slots": self.slots}
        if NETWORKS[self.model].refines:
            changes["refinement_steps"] = self.steps
        if self.chunk:
            changes["score_chunk"] = self.chunk
        return replace(run, network=replace(run.network, **changes))

    def network(self) -> ModelConfig:
        """The configuration of the network."""
        return self.run_config().network

    def build(self, device: str = "cpu") -> tuple[ObjectCentricModel, Tensor]:
        """The network, and images of noise, the same each time."""
        torch.manual_seed(0)
        model = NETWORKS[self.model](self.network()).to(device)
        return model, self.images().to(device)

    def images(self) -> Tensor:
        """Images of noise, the same each time, [B, 3, H, W]."""
        noise = torch.Generator().manual_seed(0)
        return torch.rand(self.batch, 3, self.size, self.size, generator=noise)

    def check(self) -> None:
        """Make sure that the network can have images of this size.

        Raises:
            ValueError: if it cannot.
        """
        try:
            with torch.device("meta"):
                NETWORKS[self.model](self.network())
        except ValueError as error:
            raise ValueError(f"--sizes: {self}: {error}") from None


@cache
def configuration(model: str, config: str) -> RunConfig:
    """A configuration that comes with emorl.

    Raises:
        ValueError: if there is none of that name.
    """
    return load_config(find_config(config, model), model)
