"""What training eats: images per second of a training step that never waits for them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from emorl.bench.suite import Options
from emorl.bench.workers import TimedStep, Timing, Worker
from emorl.data import UNBOUNDED, Batch, ObjectDataset
from emorl.models import MODELS
from emorl.training.config import RunConfig
from emorl.training.config_file import find_config, load_config
from emorl.training.trainer import Trainer

EATERS = ("efficient_morl", "slot_attention")  # the default, and the one with the quickest steps
_MOST_ON_CPU = 4  # images of an official step there, where more take as many times as long


class Eater(NamedTuple):
    """A model in training with a configuration."""

    config: str
    model: str

    def __str__(self) -> str:
        return f"{self.config}, {self.model}"

    @property
    def run(self) -> RunConfig:
        """The configuration."""
        return load_config(find_config(self.config, self.model))

    def batch(self, device: str) -> int:
        """Images of a step."""
        own = self.run.trainer.batch_size
        return own if device == "cuda" or is_laptop(self.config) else min(own, _MOST_ON_CPU)


def is_laptop(config: str) -> bool:
    """Whether a configuration is made for a laptop; else it is official."""
    return config.endswith("-laptop")


def worker_of(eater: Eater, options: Options) -> Worker:
    """A process that times steps, as training does them."""
    build = partial(build_step, eater, options.device)
    preload = "emorl.bench.data.steps" if options.device == "cpu" else None
    return Worker(build, options.threads, keep=options.device == "cpu", preload=preload)


def build_step(eater: Eater, device: str) -> Mapping[str, TimedStep]:
    """The training step of a configuration; the steps' images are the same all the time."""
    config = eater.run
    trainer_config = dataclasses.replace(
        config.trainer,
        batch_size=eater.batch(device),
        device="cpu" if device == "cpu" else "auto",
        eval_every=0,
    )
    torch.manual_seed(0)
    folder = tempfile.gettempdir()  # a trainer's, which only its `run` would write to
    model = MODELS[config.model](config.network)
    images = _Ready(config.network.image_size, trainer_config.batch_size, device)
    trainer = Trainer(model, images, trainer_config, folder)
    return {"step": lambda: Timing(trainer.seconds_per_step(0, 1), 0.0)}


class _Ready(ObjectDataset):
    """Images that are there already, on the device."""

    name = "ready"

    def __init__(self, image_size: tuple[int, int], batch: int, device: str) -> None:
        self.image_size = image_size
        self._images = torch.randint(0, 256, (batch, 3, *image_size), dtype=torch.uint8)
        self._images = self._images.to(device)

    def __len__(self) -> int:
        return UNBOUNDED

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return Batch(self._images, None)

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """All of them, whatever is asked for."""
        return self._images
