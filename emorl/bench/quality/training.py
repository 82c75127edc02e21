"""Training a model at laptop size in stages, and measuring what it has learned after each."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from emorl.data import open_dataset
from emorl.evaluation import evaluate
from emorl.models import MODELS, ObjectCentricModel
from emorl.runs import RunFolder
from emorl.training.config import RunConfig
from emorl.training.config_file import find_config, load_config
from emorl.training.images import training_images
from emorl.training.run import prepare
from emorl.training.trainer import Trainer

CONFIG = "tetrominoes-laptop"
SEED = 0  # of weights, order of the images and noise
DATA = {"generated": "tetrominoes", "real": "tetrominoes-real10"}
_METRICS = ("fg_ari", "fg_miou", "mse")
_WARM_UP = 3  # steps
_TRIAL = 0.03  # share of the time that a trial may take, about
_MOST_TRIED = 40  # steps
_FIRST_LOOK = 32  # images


def laptop(model: str, device: str) -> RunConfig:
    """A model's laptop configuration; nothing but the stages measures or draws."""
    config = load_config(find_config(CONFIG, model))
    trainer = dataclasses.replace(
        config.trainer,
        least_steps=None,
        seed=SEED,
        device="cpu" if device == "cpu" else "auto",
        log_every=10,
        picture_every=0,
        eval_every=0,
        keep_checkpoints=1,
    )
    return dataclasses.replace(config, trainer=trainer)


def planned(config: RunConfig, steps: int) -> RunConfig:
    """The run with so many steps; over the second half of them the learning rate falls to 0."""
    trainer = dataclasses.replace(config.trainer, steps=steps, cooldown_steps=steps // 2)
    return dataclasses.replace(config, trainer=trainer)


class Start(NamedTuple):
    """What is known before training.

    Attributes:
        measured: mean metrics of the untrained model, by names of `DATA`.
        image_seconds: of measuring one image.
        step_seconds: of a training step, from a short trial.
    """

    measured: dict[str, dict[str, float]]
    image_seconds: float
    step_seconds: float


def start(config: RunConfig, seconds: float) -> Start:
    """Measure an untrained model on a few generated images, and try some training steps.

    Args:
        config: the run; nothing is written.
        seconds: that everything may take; a small part of it is for the trial.
    """
    torch.manual_seed(SEED)
    model = MODELS[config.model](config.network)
    dataset = training_images(config.data)
    trial = Trainer(model, dataset, config.trainer, tempfile.gettempdir())
    begin = time.perf_counter()
    measured = _measured(model, {"generated": _FIRST_LOOK})
    image_seconds = (time.perf_counter() - begin) / _FIRST_LOOK
    first = trial.seconds_per_step(_WARM_UP, 1)
    tried = min(max(1, int(_TRIAL * seconds / first)), _MOST_TRIED)
    return Start(measured, image_seconds, trial.seconds_per_step(0, tried))


def stage(
    config: RunConfig, folder: Path, minutes: float, images: Mapping[str, int]
) -> dict[str, Any]:
    """Train, or go on with it, for some minutes, and measure the model.

    Args:
        config: the run.
        folder: of the run, which the first stage makes.
        minutes: of training.
        images: how many images to measure, by names of `DATA`.

    Returns:
        "step", "minutes" (of training until now) and, by names of `images`, the mean metrics.
    """
    limited = dataclasses.replace(config.trainer, max_minutes=minutes)
    with contextlib.redirect_stderr(io.StringIO()):  # its log's lines and bar
        trainer = prepare(dataclasses.replace(config, trainer=limited), folder, resume=True)
        result = trainer.run()
    if result.interrupted:
        raise SystemExit  # nobody waits for the numbers any more
    return {
        "step": result.step,
        "minutes": trained(config, folder) / 60,
        **_measured(trainer.model, images),
    }


def _measured(model: ObjectCentricModel, images: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Mean metrics on so many images that training does not see, by names of `DATA`."""
    device = next(model.parameters()).device
    found = {}
    for name, count in images.items():
        held_out = open_dataset(DATA[name], split="test", device=device)
        metrics = evaluate(model, held_out, images=count, progress=False)["metrics"]
        found[name] = {metric: metrics[metric]["mean"] for metric in _METRICS}
    return found


def trained(config: RunConfig, folder: Path) -> float:
    """Seconds of all training steps of a run, from its log."""
    file = RunFolder(folder).metrics
    seconds, before = 0.0, 0
    for line in file.read_text().splitlines() if file.exists() else ():
        row = json.loads(line)
        images = (row["step"] - before) * config.trainer.batch_size
        seconds += images / row["images_per_second"]
        before = row["step"]
    return seconds
