"""A run from its configuration: the folder, the data, the model, and what trains it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator

from emorl.data import ObjectDataset
from emorl.data.splits import ALL
from emorl.memory import require_slots
from emorl.models import MODELS
from emorl.paths import local
from emorl.runs import RunFolder
from emorl.runs.lock import RunLock, is_unused, require_usable
from emorl.training.config import DataConfig, RunConfig
from emorl.training.config_file import load_config, save_config
from emorl.training.config_keys import flat
from emorl.training.devices import lock_run, make_accelerator
from emorl.training.images import (
    has_masks,
    held_out_images,
    holds_out_some_trained_on,
    require_image_size,
    training_images,
    with_absolute_paths,
    with_decided_ranges,
    with_earlier_ranges,
)
from emorl.training.plan import describe_plan, is_open, keep_plan, plan_steps
from emorl.training.trace import changed, keep, trace_of
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
    run_dir = local(run_dir)
    accelerator = make_accelerator(config.trainer)
    lock = lock_run(accelerator, RunFolder(run_dir))
    try:
        return _prepare(config, run_dir, resume, accelerator, lock)
    except BaseException:
        lock.discard()
        raise


def _prepare(
    config: RunConfig, run_dir: Path, resume: bool, accelerator: Accelerator, lock: RunLock
) -> Trainer:
    config = dataclasses.replace(config, data=with_absolute_paths(config.data))
    if resume:
        config = _as_begun(config, run_dir)
    notes = check_folder(run_dir, config, resume)
    require_slots(config.network.num_slots, config.network.image_size)
    device = accelerator.device if config.data.workers == 0 else torch.device("cpu")
    images = training_images(config.data, device)
    require_image_size(images, config.network.image_size)
    if is_open(config.trainer):
        config = plan_steps(config, images, run_dir, accelerator)
        notes.append(describe_plan(config.trainer))
    held_out = held_out_images(config.data, device=device)
    data = with_decided_ranges(config.data, images, held_out)
    config = dataclasses.replace(config, data=data)
    measured = config.trainer
    if measured.eval_every and not has_masks(images if held_out is None else held_out):
        measured = dataclasses.replace(measured, eval_every=0)
        notes.append("trainer.eval_every: off, since there are no label maps to measure with")
    run = RunFolder(run_dir)
    own = None if config.data.held_out is None else held_out
    trace = trace_of({"data.train": images, "data.held_out": own})
    notes += changed(run, trace)
    torch.manual_seed(config.trainer.seed)
    trainer = Trainer(
        MODELS[config.model](config.network),
        images,
        measured,
        run_dir,
        held_out=held_out,
        workers=config.data.workers,
        resume=resume,
        accelerator=accelerator,
        notes=[*notes, *notes_on(config.data, images, held_out)],
        lock=lock,
    )
    accelerator.wait_for_everyone()
    if trainer.is_done:
        trainer.notes = ["all steps are done: nothing is trained, and config.yaml stays as it is"]
    elif accelerator.is_main_process:
        save_config(config, run.config)
        keep(run, trace)
    return trainer


def _as_begun(config: RunConfig, run_dir: Path) -> RunConfig:
    """The run with what it decided when it began: its last step, and the range of its files."""
    file = RunFolder(run_dir).config
    if not file.is_file():
        return config
    before = load_config(file)
    if is_open(config.trainer):
        config = keep_plan(config, before.trainer)
    earlier = with_absolute_paths(before.data)
    return dataclasses.replace(config, data=with_earlier_ranges(config.data, earlier))


def notes_on(data: DataConfig, images: ObjectDataset, held_out: ObjectDataset | None) -> list[str]:
    """What the user should know about the data sets."""
    notes = [each.slow for each in (images, held_out) if each is not None and each.slow]
    if held_out is None:
        if data.split == ALL:
            notes.append(
                "data.split all: every image is trained on, and none is held out; data.held_out "
                "names others"
            )
    elif holds_out_some_trained_on(data, images, held_out):
        notes.append("data.held_out: the run is trained on these images, and measured on them")
    return [*dict.fromkeys(notes)]


def check_folder(run_dir: Path, config: RunConfig, resume: bool) -> list[str]:
    """Refuse a folder that holds something else; what changed since the run began.

    Raises:
        ValueError: as `require_usable` does.
    """
    run = RunFolder(run_dir)
    require_usable(run, resume=resume)
    if is_unused(run):
        return []
    earlier = load_config(run.config)
    earlier = dataclasses.replace(earlier, data=with_absolute_paths(earlier.data))
    old, new = (flat(dataclasses.asdict(c)) for c in (earlier, config))
    return [
        f"changed since the run began: {key} from {old.get(key)} to {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
