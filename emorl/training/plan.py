"""How many steps fit into a run's minutes: a short trial before the first step tells."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator

from emorl.data import ObjectDataset
from emorl.models import MODELS
from emorl.training.config import RunConfig, TrainerConfig
from emorl.training.trainer import Trainer

_WARM_UP, _TIMED = 10, 40  # steps of the trial
_SHARE = 0.9  # of the minutes; pictures, measurements and slower moments take the rest


def is_open(trainer: TrainerConfig) -> bool:
    """Whether the number of steps is open."""
    return trainer.least_steps is not None and trainer.least_steps < trainer.steps


def plan_steps(
    config: RunConfig, images: ObjectDataset, run_dir: Path, accelerator: Accelerator
) -> RunConfig:
    """The run with as many steps as its minutes allow, timed on a model of its own.

    Nothing is written. Processes agree: they take the mean of their times. A curriculum is taken to
    cost what its first steps do.
    """
    trial = Trainer(
        MODELS[config.model](config.network),
        images,
        dataclasses.replace(config.trainer, eval_every=0),
        run_dir,
        workers=config.data.workers,
        accelerator=accelerator,
    )
    seconds = torch.tensor(trial.seconds_per_step(_WARM_UP, _TIMED), device=accelerator.device)
    mean = float(accelerator.reduce(seconds, "mean"))
    accelerator.free_memory()
    return dataclasses.replace(config, trainer=shorten(config.trainer, mean))


def shorten(trainer: TrainerConfig, seconds: float) -> TrainerConfig:
    """As many steps of so many seconds as fit, from `least_steps` to `steps`.

    The cool-down keeps its share of them.
    """
    assert trainer.least_steps is not None
    assert trainer.max_minutes is not None  # the configuration has made sure
    fitting = int(_SHARE * 60 * trainer.max_minutes / seconds)
    steps = min(max(fitting, trainer.least_steps), trainer.steps)
    cooldown = trainer.cooldown_steps * steps // trainer.steps
    return dataclasses.replace(trainer, steps=steps, cooldown_steps=cooldown, least_steps=None)


def keep_plan(config: RunConfig, before: TrainerConfig) -> RunConfig:
    """The run with the steps that were planned when it began, where these lie in its bounds."""
    least, most = config.trainer.least_steps, config.trainer.steps
    if least is None or not least <= before.steps <= most:
        return config
    trainer = dataclasses.replace(
        config.trainer,
        steps=before.steps,
        cooldown_steps=before.cooldown_steps,
        least_steps=None,
    )
    return dataclasses.replace(config, trainer=trainer)


def describe_plan(trainer: TrainerConfig) -> str:
    """A line for the user about a plan."""
    return (
        f"planned for {trainer.max_minutes:g} minutes: {trainer.steps} steps, "
        f"cool-down {trainer.cooldown_steps}"
    )
