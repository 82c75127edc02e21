"""`emorl evaluate`: a table of every metric, and the same as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from emorl.cli import FAILURE
from emorl.cli.arguments import Parser, local_path, number, sweep_of, whole_number
from emorl.cli.compared import Compared, compare, configuration_of
from emorl.cli.held_out import add_data_options, data_of, open_images, read_from, spec_of
from emorl.cli.kept import kept_files, require_free, require_replaceable
from emorl.cli.results import as_csv, as_json, sweep_table, table
from emorl.paths import real
from emorl.runs.files import require_place, write_atomically
from emorl.runs.folder import own_run, run_of
from emorl.runs.trained import located, short_name

if TYPE_CHECKING:
    import torch

    from emorl.data import ObjectDataset
    from emorl.metrics.perceptual import PerceptualDistance
    from emorl.models import ObjectCentricModel
    from emorl.training.config import DataConfig

_DESCRIPTION = (
    "Measure a model on held-out images. An image's noise belongs to the seed and to the image's "
    "index in the split, so that its numbers depend neither on --images nor on --batch-size. "
    "A run keeps each result in evaluation/DATA.json, and the numbers of each image in DATA.csv; "
    "the name ends with the split, protocol, seed, steps, slots and pixels that were asked for, as "
    "in DATA-val-seed1.json. Several runs are measured one after the other, then compared."
)


def run(arguments: list[str]) -> int:
    """Evaluate models, print tables, write JSON and CSV."""
    options = _parser().parse(arguments)
    options.targets = [*{real(located(path)): path for path in options.targets}.values()]

    _require_possible(options)

    from emorl.evaluation.summaries import require_alike
    from emorl.training.config import TrainerConfig
    from emorl.training.devices import make_accelerator

    accelerator = make_accelerator(TrainerConfig(device=options.device, precision="no"))
    failures: dict[str, str] = {}
    subjects = _subjects(options, failures)
    if subjects:
        require_alike([subject.images() for subject in subjects])
    for subject in subjects:
        _require_replaceable(subject)
    models, lone = [], len(subjects) + len(failures) == 1
    while subjects:
        subject = subjects.pop(0)  # no model stays on the device
        with _counting(failures, subject.options.target, lone=lone):
            result = _measure(subject, accelerator.device, accelerator.is_main_process)
            models.append(Compared(subject.name(), subject.configuration, result))
    accelerator.end_training()
    if accelerator.is_main_process:
        _finish(options, models, failures)
    return FAILURE if failures else 0


@contextmanager
def _counting(failures: dict[str, str], target: Path, *, lone: bool) -> Iterator[None]:
    """Let an error become the target's failure, unless that is the only one."""
    try:
        yield
    except (ValueError, ArithmeticError) as error:
        if lone:
            raise
        failures[str(target)] = str(error)


class _Subject(NamedTuple):
    """A model, and the images that it is measured on.

    Attributes:
        options: of the command line, with the one `target`.
        checkpoint: folder that the model was read from.
        configuration: by what it was trained, as `configuration_of` tells; None if unknown.
        model: of the command line's target.
        dataset: the images.
        data: name of the data, or absolute path.
        source: which images these are, in words.
        split: that the images are of.
        notes: what a reader of results should know of the images.
    """

    options: argparse.Namespace
    checkpoint: Path
    configuration: dict[str, Any] | None
    model: ObjectCentricModel
    dataset: ObjectDataset
    data: str
    source: str
    split: str
    notes: list[str]

    def name(self) -> str:
        """The model's, as the user knows it."""
        return short_name(self.options.target)

    def kept(self) -> list[Path]:
        """The files in which its run keeps the result."""
        return kept_files(self.options, self.model, self.dataset.name, self.split)

    def images(self) -> dict[str, str]:
        """Which images these are, for its result."""
        return {"data": self.data, "source": self.source, "split": self.split}


def _subjects(options: argparse.Namespace, failures: dict[str, str]) -> list[_Subject]:
    """What is measured: each checkpoint once, however many names lead to it."""
    subjects: dict[Path, _Subject] = {}
    for target in options.targets:
        with _counting(failures, target, lone=len(options.targets) == 1):
            subject = _subject(argparse.Namespace(**vars(options), target=target))
            place = real(subject.checkpoint)
            if place not in subjects or own_run(target):  # which keeps the result
                subjects[place] = subject
    return [*subjects.values()]


def _subject(options: argparse.Namespace) -> _Subject:
    from emorl.models import find_model
    from emorl.training.images import absolute

    run = run_of(options.target)
    folder, model = find_model(options.target)
    data = data_of(options, run)
    dataset, split, notes = open_images(options, run, data)
    named = dataset.name if options.data is None else absolute(options.data)
    if dataset.part:
        notes.append(dataset.part)
    spec = spec_of(options, data)
    require_free(options, read_from(spec, dataset))
    source = _source_of(spec, dataset, data)
    configuration = configuration_of(options.target, folder)
    return _Subject(options, folder, configuration, model, dataset, named, source, split, notes)


def _source_of(spec: str, dataset: ObjectDataset, data: DataConfig) -> str:
    """Which images these are, in words: results with the same words are of the same ones."""
    height, width = dataset.image_size
    crop = f", crop {data.crop}" if data.crop else ""
    few = "" if data.max_objects is None else f", at most {data.max_objects} objects"
    return f"{spec}, {height}x{width}{crop}{few}"


def _require_replaceable(subject: _Subject) -> None:
    """Refuse, before anything is measured, what would replace a result that holds more."""
    options, kept = subject.options, subject.kept()
    for path in kept:
        require_place(path, "RUN")
    if kept:
        images = subject.dataset.count(options.images)
        require_replaceable(
            kept[0], subject.checkpoint, subject.data, subject.source, images, options
        )


def _measure(subject: _Subject, device: torch.device, is_main_process: bool) -> dict[str, Any]:
    """Measure one model; print and store its result."""
    options, model, dataset = subject.options, subject.model, subject.dataset
    kept = subject.kept()
    result = {
        "checkpoint": str(subject.checkpoint),
        **subject.images(),
        **_numbers(options, model, dataset, device),
    }
    if is_main_process and not options.sweep and options.disentanglement != "no":
        _add_representations(result, model, dataset, options)
    result["notes"] += subject.notes
    per_image = result.pop("per_image")
    if is_main_process:
        files = dict(zip(kept, (as_json(result), as_csv(per_image)), strict=False))
        if plots := [*kept[2:], *([options.plot] if options.plot else [])]:
            files |= dict.fromkeys(plots, _plot(result))
        places = [_written(*file) for file in files.items()]
        text = sweep_table if options.sweep else table
        print(text({**result, "data": options.data or subject.data}), *places, sep="\n")
    return result


def _numbers(
    options: argparse.Namespace,
    model: ObjectCentricModel,
    dataset: ObjectDataset,
    device: torch.device,
) -> dict[str, Any]:
    """What `evaluate` or `sweep` measures."""
    from emorl.evaluation import evaluate, sweep

    settings = {
        "protocol": options.protocol,
        "images": options.images,
        "samples": options.samples,
        "refinement_steps": options.refinement_steps,
        "num_slots": options.num_slots,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "device": device,
        "sharded": True,
        "attention": options.attention,
        "perceptual": _perceptual(options, device),
    }
    if options.sweep:
        return sweep(model, dataset, *options.sweep, **settings)
    return evaluate(model, dataset, per_image=True, **settings)


def _plot(result: dict[str, Any]) -> bytes:
    """The plot of a sweep, as PNG."""
    from emorl.report import sweep_figure
    from emorl.report.pictures import png

    return png(sweep_figure(result))


def _add_representations(
    result: dict[str, Any],
    model: ObjectCentricModel,
    dataset: ObjectDataset,
    options: argparse.Namespace,
) -> None:
    """Add DCI, probes and active dimensions, or a note about what they lack."""
    from emorl.evaluation.representations import measure_representations

    try:
        metrics, details, notes = measure_representations(
            model,
            dataset,
            images=options.images,
            refinement_steps=options.refinement_steps,
            num_slots=options.num_slots,
            batch_size=options.batch_size,
            seed=options.seed,
        )
    except ImportError as error:
        if options.disentanglement == "yes":
            raise
        metrics, details = {}, {}
        notes = [f"no DCI: {error}"]
    if notes and options.disentanglement == "yes":
        raise ValueError("; ".join(notes))
    result["metrics"].update(metrics)
    result["notes"] += notes
    if details:
        result["representation"] = details


def _finish(options: argparse.Namespace, models: list[Compared], failures: dict[str, str]) -> None:
    """Compare the runs, if there are several, and write the file of `--json`."""
    whole: dict[str, Any] = models[0].result if models else {}
    if len(models) + len(failures) > 1:
        if not models:
            raise ValueError(f"no run could be evaluated: {'; '.join(failures.values())}")
        whole, text = compare(models, failures, least_fg_ari=options.failed_below)
        print("", text, sep="\n")
    if options.json:
        print(_written(options.json, as_json(whole)))


def _written(path: Path, content: bytes) -> str:
    """Write a file, and say whether another one was there."""
    line = f"{'replaced' if path.exists() else 'written'}: {path}"
    write_atomically(path, content)
    return line


def _require_possible(options: argparse.Namespace) -> None:
    """Refuse what would fail after the work, or what a sweep has no use for."""
    require_free(options, read_from(options.data))
    if not options.sweep:
        if options.plot:
            raise ValueError("--plot: is of --sweep")
        return
    if len(options.targets) > 1:
        raise ValueError(f"--sweep: expected one run, got {len(options.targets)}")
    if options.disentanglement == "yes":
        raise ValueError("--sweep: leaves out --disentanglement, which takes minutes for a value")
    parameter = options.sweep[0]
    if getattr(options, parameter) is not None:
        raise ValueError(f"--sweep: expected no --{parameter.replace('_', '-')} beside it")
    import emorl.report  # noqa: F401  matplotlib would be missed after the work otherwise


def _perceptual(options: argparse.Namespace, device: torch.device) -> PerceptualDistance | None:
    if not options.lpips:
        return None
    from emorl.metrics.perceptual import PerceptualDistance

    return PerceptualDistance(device=device)


def _parser() -> Parser:
    parser = Parser("evaluate", _DESCRIPTION)
    add = parser.add_argument
    add(
        "targets",
        type=local_path,
        nargs="+",
        metavar="RUN|CHECKPOINT",
        help="a run, a checkpoint, a model folder or a trained model's name; several are compared",
    )
    add_data_options(parser)
    add(
        "--protocol",
        choices=["sample", "mean", "paper"],
        default="sample",
        help="sample: one sample of the slots; mean: the means of their posteriors; paper: as "
        "published, 320 images, one sample, masks resized to the true ones' size",
    )
    add("--images", type=whole_number(1), default=320, help="images to measure")
    add("--samples", type=whole_number(1), default=1, help="times that each image is measured")
    add("--refinement-steps", type=whole_number(0), help="of the slots (default: the model's own)")
    add("--num-slots", type=whole_number(1), help="of each image (default: the model's own)")
    add(
        "--sweep",
        type=sweep_of,
        metavar="NAME=VALUES",
        help="refinement-steps=0..6 or num-slots=5,7,9: measure with each of these numbers, and "
        "plot what depends on it",
    )
    add("--batch-size", type=whole_number(1), default=32, help="images at a time")
    add("--seed", type=whole_number(0), default=0, help="of the noise")
    add("--device", choices=["auto", "cpu"], default="auto", help="auto takes a GPU if any")
    add(
        "--disentanglement",
        choices=["auto", "yes", "no"],
        default="auto",
        help="DCI, probes and active dimensions; auto: where there are factors and scikit-learn",
    )
    add("--attention", action="store_true", help="score the maps of slot attention as well")
    add("--lpips", action="store_true", help="LPIPS as well; needs weights, docs/evaluation.md")
    add(
        "--failed-below",
        type=number,
        default=0.8,
        metavar="FG-ARI",
        help="of several runs, one with a lower FG-ARI counts as failed",
    )
    add("--json", type=local_path, metavar="FILE", help="write the result there too")
    add("--plot", type=local_path, metavar="FILE.png", help="write the plot of a sweep there too")
    return parser
