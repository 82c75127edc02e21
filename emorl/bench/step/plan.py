"""What the suite measures: networks as published, a laptop's, and how a step's cost grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from emorl.bench.step.build import INFERENCE, PARTS, TRAINING, build
from emorl.bench.step.cases import PUBLISHED, Case, configuration
from emorl.bench.step.variants import FIRST_ORDER, RELEASED, inferred, rounding, trained
from emorl.bench.suite import Options
from emorl.bench.tables import Rows
from emorl.bench.turns import Group, Variant
from emorl.models import MODELS as NETWORKS

LAPTOP = "tetrominoes-laptop"
PUBLISHED_STEPS = (3, 0, 1)  # EfficientMORL's I, in the order of their importance
BASE = "tetrominoes"  # the configuration whose cost is followed
SIZES = (32, 35, 48, 64, 96, 128)
BATCH = 4
# What is followed, by the field of a case; in each the two ends and a place between come first.
AXES = {
    "slots": (3, 11, 7, 5, 9),
    "size": (32, 96, 64, 128, 48),
    "steps": (0, 5, 3, 1, 2, 4),
    "batch": (1, 8, 2, 16, 32, 4),
}
_EARLY = 3  # places of an axis that come before the published networks on a CPU


class Work(NamedTuple):
    """A part of a case, in all its variants or in the usual one alone."""

    case: Case
    part: str
    in_full: bool = False

    def __str__(self) -> str:
        return f"{self.case}, {self.part}"


def base(model: str, batch: int) -> Case:
    """The case from which a model's cost is followed."""
    return Case.of(model, BASE, batch)


def axes_of(model: str) -> list[str]:
    """The axes that a model has: without I if it does not refine."""
    return [axis for axis in AXES if axis != "steps" or NETWORKS[model].refines]


def plan(options: Options) -> list[Work]:
    """What is measured, each once, in the order of its importance on the device.

    On a GPU the published networks come first, since all is quick there; on a CPU what is quick,
    and what belongs to every axis, so that a small budget has something of everything.
    """
    early, late = _followed(options, 0, _EARLY), _followed(options, _EARLY, None)
    laptop, published = _in_full((LAPTOP,), options), _in_full(PUBLISHED, options)
    if options.device == "cuda":
        order = [*published, *laptop, *early, *late]
    else:
        order = [*laptop, *_in_full((BASE,), options), *early, *published, *late]
    full = {(work.case, work.part) for work in order if work.in_full}
    once = dict.fromkeys(w._replace(in_full=(w.case, w.part) in full) for w in order)
    return [work for work in once if work.case.size in options.sizes]


def _in_full(configs: Sequence[str], options: Options) -> list[Work]:
    """Configurations' networks of each model, then EfficientMORL's with less refinement."""
    found = []
    for steps, part, config, model in product(PUBLISHED_STEPS, PARTS, configs, options.models):
        case = Case.of(model, config, options.batch)
        if model == "efficient_morl" and config in PUBLISHED:
            case = replace(case, steps=steps)
        found.append(Work(case, part, in_full=True))
    return [*dict.fromkeys(found)]


def _followed(options: Options, begin: int, end: int | None) -> list[Work]:
    """Some places of each axis, of all models; throughput is an inference's too."""
    axes = _axes(options)
    places = range(max(map(len, axes.values())))[begin:end]
    return [
        Work(_changed(base(model, options.batch), axis, axes[axis][place]), part)
        for place, axis, model in product(places, axes, options.models)
        if place < len(axes[axis]) and axis in axes_of(model)
        for part in (PARTS if axis == "batch" else (TRAINING,))
    ]


def _changed(case: Case, axis: str, value: int) -> Case:
    changes: dict[str, Any] = {axis: value}
    return replace(case, **changes)


def _axes(options: Options) -> dict[str, tuple[int, ...]]:
    """`AXES` with the sizes that are asked for."""
    asked = options.sizes
    known = tuple(size for size in AXES["size"] if size in asked)
    return {**AXES, "size": (*known, *(size for size in asked if size not in known))}


def check(options: Options) -> None:
    """Make sure that every network can have its size.

    Raises:
        ValueError: naming the first that cannot.
    """
    for case in dict.fromkeys(work.case for work in plan(options)):
        case.check()


def variants_of(work: Work, options: Options) -> list[str]:
    """The variants of a work; the first one is what the others are compared with."""
    case, training = work.case, work.part == TRAINING
    if not work.in_full:
        ours = [usual(work, options.device)]
    elif training:
        ours = trained(options.device, _can_be_captured(case))
    else:
        ours = inferred(options.device)
    if options.official is None or not case.is_released:
        return ours
    refined = training and case.model == "efficient_morl" and case.steps > 0 and work.in_full
    if not refined:
        return [*ours, RELEASED]
    chunked = ["float32 chunked"] if options.device == "cpu" else []
    return [*ours, *chunked, RELEASED, FIRST_ORDER]


def usual(work: Work, device: str) -> str:
    """The variant that `emorl train` and `emorl evaluate` take by themselves."""
    if device == "cpu" or work.part == INFERENCE:
        return "float32"
    return "tf32 graph" if _can_be_captured(work.case) else "tf32"


def _can_be_captured(case: Case) -> bool:
    return configuration(case.model, case.config).trainer.optimizer == "adam"


def groups(options: Options) -> list[Group]:
    """What is measured, as groups of variants that take turns."""
    return [_group(work, options) for work in plan(options)]


def _group(work: Work, options: Options) -> Group:
    variants = {
        variant: Variant(
            partial(build, work.case, work.part, variant, options.official, options.device),
            keep=options.device == "cpu" and variant not in (RELEASED, FIRST_ORDER),
            rounding=rounding(variant, options.device),
        )
        for variant in variants_of(work, options)
    }
    entry = {**asdict(work.case), "part": work.part, "usual": usual(work, options.device)}
    return Group(str(work), (work.part,), variants, entry)


def outline(options: Options) -> Rows:
    """A row for each work: its part and variants."""
    rows = [["case", "part", "device", "variants"]]
    return rows + [
        [str(work.case), work.part, options.device, "; ".join(variants_of(work, options))]
        for work in plan(options)
    ]


def bases(models: Sequence[str], batch: int) -> dict[str, dict[str, int]]:
    """The numbers from which each model's cost is followed, by model and axis."""
    found = {model: asdict(base(model, batch)) for model in models}
    return {model: {axis: case[axis] for axis in axes_of(model)} for model, case in found.items()}
