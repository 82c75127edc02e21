"""A run from its configuration: the folder, the data, the model, and what trains it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator

from emorl.models import MODELS
from emorl.runs import RunFolder
from emorl.runs.lock import RunLock, is_unused
from emorl.training.config import RunConfig
from emorl.training.config_file import load_config, save_config
from emorl.training.config_keys import flat
from emorl.training.devices import lock_run, make_accelerator
from emorl.training.images import held_out_images, training_images
from emorl.training.plan import describe_plan, is_open, keep_plan, plan_steps
from emorl.training.trainer import Trainer


def prepare(config: RunConfig, run_dir: str | Path, *, resume: bool = False) -> Trainer:
    """Make everything that a run needs: its folder, with config.yaml, its data and its model.

    From now on the folder is this process's alone. A run that is refused leaves no new folder.

    Args:
        config: the run.
        run_dir: the run's folder; what goes there, `RunFolder` lists.
        resume: go on from the newest checkpoint there, or begin if there is none.

    Returns:
        The trainer, whose `run` is left to call.

    Raises:
        ValueError: in one line, for a folder in use, data that cannot be opened, a model that
            cannot be built, or a checkpoint of another network.
    """
    accelerator = make_accelerator(config.trainer)
    lock = lock_run(accelerator, RunFolder(run_dir))
    try:
        return _prepare(config, Path(run_dir), resume, accelerator, lock)
    except BaseException:
        lock.discard()
        raise


def _prepare(
    config: RunConfig, run_dir: Path, resume: bool, accelerator: Accelerator, lock: RunLock
) -> Trainer:
    if resume and is_open(config.trainer):
        config = _with_earlier_plan(config, run_dir)
    notes = check_folder(run_dir, config, resume)
    device = accelerator.device if config.data.workers == 0 else torch.device("cpu")
    images = training_images(config.data, device)
    if is_open(config.trainer):
        config = plan_steps(config, images, run_dir, accelerator)
        notes.append(describe_plan(config.trainer))
    torch.manual_seed(config.trainer.seed)
    trainer = Trainer(
        MODELS[config.model](config.network),
        images,
        config.trainer,
        run_dir,
        held_out=held_out_images(config.data, device=device),
        workers=config.data.workers,
        resume=resume,
        accelerator=accelerator,
        notes=notes,
        lock=lock,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_config(config, RunFolder(run_dir).config)
    return trainer


def _with_earlier_plan(config: RunConfig, run_dir: Path) -> RunConfig:
    """The run, which ends at the step that was planned when it began."""
    before = RunFolder(run_dir).config
    return keep_plan(config, load_config(before).trainer) if before.is_file() else config


def check_folder(run_dir: Path, config: RunConfig, resume: bool) -> list[str]:
    """Refuse a folder that holds something else; what changed since the run began.

    Raises:
        ValueError: if the folder is in use and not to be resumed, or not a run's.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ValueError(f"--out: {run_dir} is a file")
    if is_unused(RunFolder(run_dir)):
        return []
    before = RunFolder(run_dir).config
    if not before.is_file():
        raise ValueError(f"--out: {run_dir} is not empty and not a run's folder")
    if not resume:
        raise ValueError(
            f"--out: {run_dir} holds a run; go on with --resume auto or choose another --out"
        )
    old, new = (flat(dataclasses.asdict(c)) for c in (load_config(before), config))
    return [
        f"changed since the run began: {key} from {old.get(key)} to {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
