"""Logs, measurements and pictures of a run, made by its main process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from emorl.data import ObjectDataset
from emorl.evaluation import ImageNoise, evaluate
from emorl.models import ObjectCentricModel
from emorl.report import write_pictures
from emorl.runs import RunFolder
from emorl.runs.log import Row, RunLog
from emorl.training.config import SIZES, TrainerConfig

_PICTURED = 8


class Observer:
    """Watches a model that is being trained; it draws no number that training draws.

    Args:
        model: the model, without wrappers.
        dataset: training images.
        held_out: images for pictures and FG-ARI; without them pictures show training images.
        config: how often to log, measure and draw.
        run: the run's folder.
        start: step that the run begins or goes on with.
    """

    def __init__(
        self,
        model: ObjectCentricModel,
        dataset: ObjectDataset,
        held_out: ObjectDataset | None,
        config: TrainerConfig,
        run: RunFolder,
        start: int,
    ) -> None:
        self.model, self.dataset, self.held_out = model, dataset, held_out
        self.config, self.run = config, run
        self.log = RunLog(run, start, config.steps)
        self._seconds, self._steps = 0.0, 0

    def after_step(self, row: Row, seconds: float, last: bool) -> None:
        """Log, measure and draw what is due.

        Args:
            row: the step's numbers and what the curriculum said; row["step"] steps are done.
            seconds: that the step took.
            last: whether training ends with this step.
        """
        step = int(row["step"])
        sizes = {name: row[name] for name in SIZES if name in self.config.curriculum}
        self._seconds += seconds
        self._steps += 1
        row["images_per_second"] = self._steps * self.config.batch_size / self._seconds
        self.log.step(row)
        measured = _due(step, self.config.eval_every)
        if measured:
            row["fg_ari"] = self._measure(sizes)
        if last or measured or _due(step, self.config.log_every):
            self.log.row(row)
            self._seconds, self._steps = 0.0, 0
        if self.config.picture_every and (last or _due(step, self.config.picture_every)):
            self.log.images(self._draw(step, sizes), step)

    def say(self, lines: Sequence[str]) -> None:
        """Print lines for the user."""
        for line in lines:
            self.log.say(line)

    def close(self) -> None:
        """Flush and close the files."""
        self.log.close()

    def _measure(self, sizes: dict[str, Any]) -> float:
        """FG-ARI on held-out images, with the same noise at every step."""
        assert self.held_out is not None  # the trainer has made sure
        result = evaluate(
            self.model,
            self.held_out,
            images=self.config.eval_images,
            batch_size=self.config.batch_size,
            progress=False,
            **sizes,
        )
        return float(result["metrics"]["fg_ari"]["mean"])

    @torch.no_grad()
    def _draw(self, step: int, sizes: dict[str, Any]) -> list[Path]:
        """Pictures of the first images' current decomposition, always with the same noise."""
        dataset = self.held_out or self.dataset
        indices = range(dataset.count(_PICTURED))
        batch = dataset.__getitems__(indices)
        device = next(self.model.parameters()).device
        noise = ImageNoise(indices, seed=self.config.seed, device=device)
        images = batch.image.to(device)
        self.model.eval()
        decomposition = self.model(images, generator=noise, details=True, **sizes)
        self.model.train()
        return write_pictures(self.run.pictures_of(step), images, decomposition, batch.mask)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
