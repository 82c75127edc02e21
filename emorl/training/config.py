"""What a training run is made of, as dataclasses; `config_file` reads and writes them as YAML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from emorl.data.transforms import box_of
from emorl.data.values import ValueRange, value_range
from emorl.fields import fit_fields, shown
from emorl.memory import most_processes
from emorl.models.geco import ACCELERATION, DECAY, STEP_SIZE, WARM_START
from emorl.paths import is_path
from emorl.training.optimizers import OptimizerName

Precision = Literal["auto", "no", "tf32", "bf16"]
Crop = Literal["clevr", "clevr-bilinear", "clevrtex", "centre"]
Curriculum = dict[str, list[tuple[int, int | float]]]

SIZES = ("refinement_steps", "num_slots")
SCHEDULABLE = (*SIZES, "kl_weight")
"""What a curriculum can change: whole numbers, and a weight."""


@dataclass
class DataConfig:
    """The images to train on.

    Attributes:
        train: a generator's name (tetrominoes, ...), a file of images or a folder of pictures; the
            run's config.yaml has the absolute path.
        held_out: images for `eval_every` and the pictures: another generator, file or folder; null
            takes the split "val" of `train`.
        value_range: what the numbers of the file `train` mean, [0, 1] or [0, 255]; null lets the
            file decide (an attribute, its layout, its dtype), which the run's config.yaml keeps.
        held_out_value_range: the same for a file `held_out`; null takes `value_range`, and without
            that lets the file decide.
        split: the part of the data to train on.
        limit: use only the first images of the split; null uses all.
        max_objects: of files, use the images with at most so many objects, as the factor visibility
            tells: 6 makes CLEVR6 of CLEVR; null uses all.
        crop: "clevr" cuts rows 29 to 220 and columns 64 to 255 out of CLEVR's 240x320 images, to be
            resized as EfficientMORL did, "clevr-bilinear" as Slot Attention did; "clevrtex" rows 24
            to 215 of ClevrTex's; "centre" the largest region in the middle with the aspect of
            `size`; or four numbers, [FIRST_ROW, ROW_AFTER, FIRST_COLUMN, COLUMN_AFTER].
        size: side, or [height, width], in pixels to which images are resized; null leaves them.
            Pictures of a folder keep their aspect and lose margins.
        seed: of the generator's images; another seed gives other images.
        workers: processes that prepare batches; 0 prepares them in the training process, and lets
            a generator run on the training device.
    """

    train: str = "tetrominoes"
    held_out: str | None = None
    value_range: ValueRange | None = None
    held_out_value_range: ValueRange | None = None
    split: str = "train"
    limit: int | None = None
    max_objects: int | None = None
    crop: Crop | tuple[int, int, int, int] | None = None
    size: int | tuple[int, int] | None = None
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        fit_fields(self, "data.")
        for name in ("train", "held_out"):
            if (given := getattr(self, name)) is not None and not is_path(given):
                raise ValueError(f"data.{name}: expected a path, got {shown(given)}")
        _at_least("data.limit", self.limit, 1)
        _at_least("data.max_objects", self.max_objects, 0)
        for side in (self.size,) if isinstance(self.size, int) else self.size or ():
            _at_least("data.size", side, 1)
        if isinstance(self.crop, tuple):
            box_of(self.crop, "data.crop")
        _at_least("data.workers", self.workers, 0)
        for name in ("value_range", "held_out_value_range"):
            if (given := getattr(self, name)) is not None:
                setattr(self, name, value_range(given, f"data.{name}"))
        if self.workers > (most := most_processes()):
            raise ValueError(
                f"data.workers: expected at most {most}, as many processes as this machine has "
                f"memory for, got {self.workers}"
            )


@dataclass
class GECOConfig:
    """Training towards a likelihood (GECO) instead of with a fixed weight of the KL term.

    Attributes:
        target_per_dim: negative log-likelihood to reach, nats per image value (3 H W of them).
        warm_start: steps of plain ELBO before the constraint counts.
        decay: of the constraint's moving average, in [0, 1).
        step_size: of the multiplier's update.
        acceleration: factor of the step size while the target is met.
    """

    target_per_dim: float
    warm_start: int = WARM_START
    decay: float = DECAY
    step_size: float = STEP_SIZE
    acceleration: float = ACCELERATION

    def __post_init__(self) -> None:
        fit_fields(self, "trainer.geco.")
        _at_least("trainer.geco.warm_start", self.warm_start, 0)
        _at_least("trainer.geco.step_size", self.step_size, 0)
        _at_least("trainer.geco.acceleration", self.acceleration, 0)
        if not 0 <= self.decay < 1:
            raise ValueError(f"trainer.geco.decay: expected a number in [0, 1), got {self.decay}")


@dataclass
class TrainerConfig:
    """How to train.

    Attributes:
        steps: optimiser steps of the whole run.
        max_minutes: minutes of training after which a run ends as if its steps were done; the
            schedules do not know of it. A resumed run begins to count anew. null: no limit.
        least_steps: where `max_minutes` are too few for `steps`, a short trial before the first
            step shortens `steps` and `cooldown_steps`, in proportion, to what will fit, but not
            below this. The run's config.yaml has the result. null: nothing is shortened.
        batch_size: images per optimiser step, over all processes and accumulated parts.
        optimizer: "adam", as most of these models were published with, "rmsprop", as MONet was, or
            "muon", which needs far fewer steps on small networks: Muon for matrices and
            convolutions, Adam for the rest.
        learning_rate: the optimiser's, at the end of the warm-up.
        warmup_steps: steps of linear warm-up.
        decay_rate: factor of the learning rate per `decay_steps` after the warm-up.
        decay_steps: null keeps the learning rate after the warm-up.
        cooldown_steps: last steps of the run, over which the learning rate falls linearly to 0; all
            after the warm-up, if these are fewer.
        clip_norm: largest norm of the gradient; null does not clip.
        curriculum: arguments of the objective by step, e.g. {refinement_steps: [[0, 3],
            [100000, 1]]}; also kl_weight and num_slots.
        geco: null trains on the ELBO.
        seed: of the first weights, of the order of the images and of the model's noise.
        precision: "no" is float32; "tf32" lets a GPU's matrix products and convolutions round
            their factors to 10 bits after the leading one (a relative error of 4.9e-4 at most) and
            add the products in float32; "auto" is "tf32" on a GPU that has it, else "no"; "bf16"
            computes the networks over pixels in bfloat16, the rest in float32.
        cuda_graph: capture a whole step as one CUDA graph and replay it: on one GPU, with Adam,
            without accumulation. The numbers stay the same, up to rounding. null: where that is
            so, and `compile` is false.
        compile: compile each part of the network by torch.compile, about a minute before the first
            step; the numbers stay the same, up to rounding. On a CPU it gains nothing.
        accumulation: parts into which a process cuts its share of a batch to save memory; the
            numbers stay the same, up to rounding.
        device: "auto" takes a GPU if there is one.
        deterministic: also choose deterministic kernels on a GPU (slower), so that a resumed run
            repeats every bit there too; on the CPU it always does.
        log_every: steps between rows of metrics.jsonl.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: newest checkpoints that stay.
        picture_every: steps between pictures of the current decomposition; 0 draws none.
        eval_every: steps between measurements of FG-ARI on held-out images, by the first process
            while the others wait; 0 measures none.
        eval_images: held-out images to measure.
    """

    steps: int = 300_000
    max_minutes: float | None = None
    least_steps: int | None = None
    batch_size: int = 32
    optimizer: OptimizerName = "adam"
    learning_rate: float = 4e-4
    warmup_steps: int = 10_000
    decay_rate: float = 0.5
    decay_steps: int | None = 100_000
    cooldown_steps: int = 0
    clip_norm: float | None = 5.0
    curriculum: Curriculum = field(default_factory=dict)
    geco: GECOConfig | None = None
    seed: int = 0
    precision: Precision = "auto"
    cuda_graph: bool | None = None
    compile: bool = False
    accumulation: int = 1
    device: Literal["auto", "cpu"] = "auto"
    deterministic: bool = False
    log_every: int = 100
    checkpoint_every: int = 5_000
    keep_checkpoints: int = 3
    picture_every: int = 5_000
    eval_every: int = 0
    eval_images: int = 320

    def __post_init__(self) -> None:
        fit_fields(self, "trainer.")
        for name in ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every"):
            _at_least(f"trainer.{name}", getattr(self, name), 1)
        for name in ("keep_checkpoints", "eval_images", "decay_steps", "least_steps"):
            _at_least(f"trainer.{name}", getattr(self, name), 1)
        for name in ("warmup_steps", "cooldown_steps", "picture_every", "eval_every"):
            _at_least(f"trainer.{name}", getattr(self, name), 0)
        for name in ("learning_rate", "decay_rate", "clip_norm", "max_minutes"):
            _positive(f"trainer.{name}", getattr(self, name))
        if self.least_steps is not None and self.max_minutes is None:
            raise ValueError(
                f"trainer.least_steps: expected trainer.max_minutes with it, got {self.least_steps}"
            )
        check_curriculum(self.curriculum)


@dataclass
class RunConfig:
    """A whole run: `network` is the Config of the model called `model`."""

    network: Any
    model: str = "efficient_morl"
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def check_curriculum(curriculum: Curriculum) -> None:
    """Make sure that every argument has a value at every step.

    Raises:
        ValueError: for a name that cannot be scheduled, a schedule that does not begin at step 0
            or is not in increasing order of steps, and a fraction where a count is expected.
    """
    for name, stages in curriculum.items():
        where = f"trainer.curriculum.{name}"
        if name not in SCHEDULABLE:
            raise ValueError(
                f"{where}: expected one of {', '.join(SCHEDULABLE)}, got {shown(name)}"
            )
        begins = [begin for begin, _ in stages]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)):
            raise ValueError(
                f"{where}: expected [[0, value], [later step, value], ...], got steps {begins}"
            )
        least = 1 if name == "num_slots" else 0
        for begin, value in stages:
            if value < least or (name in SIZES and not isinstance(value, int)):
                kind = "whole number" if name in SIZES else "number"
                raise ValueError(
                    f"{where}: expected a {kind} >= {least}, got {value} from step {begin} on"
                )


def _at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not least <= value < math.inf:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _positive(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value}")
