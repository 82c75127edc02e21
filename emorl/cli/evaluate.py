"""`emorl evaluate`: a table of every metric, and the same as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl.cli.arguments import Parser, local_path, whole_number
from emorl.cli.held_out import add_data_options, data_of, is_trained_on, open_images
from emorl.cli.results import as_csv, as_json, runs_table, table
from emorl.paths import real
from emorl.runs.files import read_json, require_place, write_atomically
from emorl.runs.folder import RunFolder, run_of

if TYPE_CHECKING:
    import torch

    from emorl.data import ObjectDataset
    from emorl.metrics.perceptual import PerceptualDistance
    from emorl.models import ObjectCentricModel

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

    if options.json:
        require_place(options.json, "--json")

    from emorl.training.config import TrainerConfig
    from emorl.training.devices import make_accelerator

    accelerator = make_accelerator(TrainerConfig(device=options.device, precision="no"))
    results, failures = [], {}
    for target in options.targets:
        try:
            one = argparse.Namespace(**vars(options), target=target)
            results.append(_evaluate(one, accelerator.device, accelerator.is_main_process))
        except (ValueError, ArithmeticError) as error:
            if len(options.targets) == 1:
                raise
            failures[str(target)] = str(error)
    accelerator.end_training()
    if accelerator.is_main_process:
        _finish(options, results, failures)
    return 0


def _evaluate(
    options: argparse.Namespace, device: torch.device, is_main_process: bool
) -> dict[str, Any]:
    """Evaluate one model; print and store its result."""
    from emorl.evaluation import evaluate
    from emorl.models import find_model
    from emorl.training.images import absolute

    run = run_of(options.target)
    folder, model = find_model(options.target)
    data = data_of(options, run)
    dataset = open_images(options, run, data)
    trained_on = is_trained_on(run, data, dataset)
    split = data.split if trained_on else options.split
    kept = _kept(options, run, _stem(options, model, dataset.name, split))
    for path in kept:
        require_place(path, "RUN")
    named = dataset.name if options.data is None else absolute(options.data)
    if kept:
        images, left_out = dataset.count(options.images), _not_asked_for(options)
        _require_replaceable(kept[0], folder, named, images, left_out)
    result = {
        "checkpoint": str(folder),
        "data": named,
        "split": split,
        **evaluate(
            model,
            dataset,
            protocol=options.protocol,
            images=options.images,
            samples=options.samples,
            refinement_steps=options.refinement_steps,
            num_slots=options.num_slots,
            batch_size=options.batch_size,
            seed=options.seed,
            device=device,
            sharded=True,
            attention=options.attention,
            perceptual=_perceptual(options, device),
            per_image=True,
        ),
    }
    if is_main_process and options.disentanglement != "no":
        _add_representations(result, model, dataset, options)
    if trained_on:
        result["notes"].append("the run was trained on these images")
    if dataset.part:
        result["notes"].append(dataset.part)
    per_image = result.pop("per_image")
    if is_main_process:
        contents = [as_json(result), as_csv(per_image)][: len(kept)]
        places = [_written(*file) for file in zip(kept, contents, strict=True)]
        print(table({**result, "data": options.data or named}), *places, sep="\n")
    return result


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
    except ModuleNotFoundError as error:
        if options.disentanglement == "yes":
            raise
        metrics, details = {}, {}
        notes = [f"no DCI without {error.name}: pip install 'emorl[evaluation]'"]
    if notes and options.disentanglement == "yes":
        raise ValueError("; ".join(notes))
    result["metrics"].update(metrics)
    result["notes"] += notes
    if details:
        result["representation"] = details


def _finish(
    options: argparse.Namespace, results: list[dict[str, Any]], failures: dict[str, str]
) -> None:
    """Compare the runs, if there are several, and write the file of `--json`."""
    from emorl.evaluation.summaries import across_runs

    whole: dict[str, Any] = results[0] if results else {}
    if len(options.targets) > 1:
        if not results:
            raise ValueError(f"no run could be evaluated: {'; '.join(failures.values())}")
        summary = across_runs(results, failures, least_fg_ari=options.failed_below)
        whole = {**summary, "results": results}
        print("", runs_table(results, summary), sep="\n")
    if options.json:
        print(_written(options.json, as_json(whole)))


def _written(path: Path, content: bytes) -> str:
    """Write a file, and say whether another one was there."""
    line = f"{'replaced' if path.exists() else 'written'}: {path}"
    write_atomically(path, content)
    return line


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
    add("--refinement-steps", type=whole_number(0), help="None: the model's own number")
    add("--num-slots", type=whole_number(1), help="None: the model's own number")
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
        type=float,
        default=0.8,
        metavar="FG-ARI",
        help="of several runs, one with a lower FG-ARI counts as failed",
    )
    add("--json", type=local_path, metavar="FILE", help="write the result there too")
    return parser


def _stem(options: argparse.Namespace, model: ObjectCentricModel, name: str, split: str) -> str:
    """The result's name in a run: of the data and of what was asked for beside the usual."""
    asked = {
        "": (options.protocol, "sample"),
        "samples": (options.samples, 1),
        "seed": (options.seed, 0),
        "refinement-steps": (
            options.refinement_steps,
            getattr(model.config, "refinement_steps", None),
        ),
        "num-slots": (options.num_slots, getattr(model.config, "num_slots", None)),
        "crop-": (options.crop, None),
        "size": (options.size, None),
        "values": (
            options.value_range and "to".join(map("{:g}".format, options.value_range)),
            None,
        ),
    }
    parts = [f"{key}{value}" for key, (value, usual) in asked.items() if value not in (None, usual)]
    stem = Path(options.data or name).name.partition(".")[0]
    return "-".join([stem, *([] if split == "test" else [split]), *parts])


def _kept(options: argparse.Namespace, run: RunFolder | None, stem: str) -> list[Path]:
    """The files in the run's folder, JSON and CSV; none for a model without a run."""
    if run is None or run.path != real(options.target):
        return []
    path = RunFolder(options.target).evaluation(stem)
    return [path, path.with_suffix(".csv")]


def _not_asked_for(options: argparse.Namespace) -> tuple[str, ...]:
    """Beginnings of the names of metrics that these options leave out."""
    wanted = {
        "attention_": options.attention,
        "lpips": options.lpips,
        "dci_": options.disentanglement != "no",
    }
    return tuple(name for name, is_wanted in wanted.items() if not is_wanted)


def _require_replaceable(
    path: Path, checkpoint: Path, data: str, images: int, left_out: tuple[str, ...]
) -> None:
    """Refuse to replace a result of other data, or one of the same checkpoint that holds more.

    Raises:
        ValueError: if such a result is there.
    """
    try:
        before = read_json(path)
        its_data, its_images = Path(before["data"]), int(before["images"])
        same_checkpoint = Path(before["checkpoint"]).name == checkpoint.name
        more = [name for name in before["metrics"] if name.startswith(left_out)]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, AttributeError):
        return  # nothing that could be lost
    holds = None
    if its_data.is_absolute() and Path(data).is_absolute() and its_data != Path(data):
        holds = f"the result of {its_data}"
    elif same_checkpoint and its_images > images:
        holds = f"the result of {its_images} images, more than {images}"
    elif same_checkpoint and more:
        holds = f"{', '.join(more[:3])}, which would be lost"
    if holds:
        raise ValueError(
            f"{path}: holds {holds}; move it away, or evaluate {checkpoint} with --json FILE"
        )
