"""`emorl evaluate`: a table of every metric, and the same as JSON."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl.cli.arguments import Parser, local_path, number_range, path_text, whole_number
from emorl.paths import real
from emorl.runs.files import read_json, require_place, write_atomically
from emorl.runs.folder import RunFolder, run_of

if TYPE_CHECKING:
    from emorl.data import ObjectDataset
    from emorl.data.values import ValueRange
    from emorl.models import ObjectCentricModel
    from emorl.training.config import DataConfig

_DESCRIPTION = (
    "Measure a model on held-out images. An image's noise belongs to the seed and to the image's "
    "index in the split, so that its numbers depend neither on --images nor on --batch-size. "
    "A run keeps each result in evaluation/DATA.json, whose name ends with the split, seed, steps, "
    "slots and pixels that were asked for, as in DATA-val-seed1.json."
)


def run(arguments: list[str]) -> int:
    """Evaluate a model, print the table, write the JSON."""
    options = _parser().parse(arguments)

    if options.json:
        require_place(options.json, "--json")
    run = run_of(options.target)

    from emorl.evaluation import evaluate
    from emorl.models import find_model
    from emorl.training.config import TrainerConfig
    from emorl.training.devices import make_accelerator
    from emorl.training.images import absolute

    folder, model = find_model(options.target)
    data = _data(options, run)
    dataset = _open(options, run, data)
    trained_on = run is not None and _is_trained_on(data, dataset)
    split = data.split if trained_on else options.split
    destinations = _destinations(options, run, _stem(options, model, dataset.name, split))
    for path in destinations:
        require_place(path, "RUN")
    named = dataset.name if options.data is None else absolute(options.data)
    if destinations and destinations[0] != options.json:
        _require_replaceable(destinations[0], folder, named, dataset.count(options.images))
    accelerator = make_accelerator(TrainerConfig(device=options.device, precision="no"))
    result = {
        "checkpoint": str(folder),
        "data": named,
        "split": split,
        **evaluate(
            model,
            dataset,
            images=options.images,
            refinement_steps=options.refinement_steps,
            num_slots=options.num_slots,
            batch_size=options.batch_size,
            seed=options.seed,
            device=accelerator.device,
            sharded=True,
        ),
    }
    if trained_on:
        result["notes"].append("the run was trained on these images")
    accelerator.end_training()
    if not accelerator.is_main_process:
        return 0
    places = [f"{'replaced' if path.exists() else 'written'}: {path}" for path in destinations]
    for path in destinations:
        write_atomically(path, (json.dumps(_without_nan(result), indent=2) + "\n").encode())
    print(table({**result, "data": options.data or named}), *places, sep="\n")
    return 0


def table(result: dict[str, Any]) -> str:
    """The result of an evaluation as text for a terminal."""
    steps = result["refinement_steps"]
    refined = "" if steps is None else f", {steps} refinement steps"
    head = (
        f"{result['checkpoint']}\n{result['data']} ({result['split']}): {result['images']} images"
        f"{refined}, seed {result['seed']}\n\n{'metric':20} {'mean':>12} {'std':>12} {'images':>7}"
    )
    rows = [
        f"{name:20} {m['mean']:12.5g} {m['std']:12.5g} {m['count']:7d}"
        for name, m in result["metrics"].items()
    ]
    notes = [f"note: {note}" for note in result["notes"]]
    return "\n".join([head, *rows, *notes])


def _parser() -> Parser:
    parser = Parser("evaluate", _DESCRIPTION)
    add = parser.add_argument
    add(
        "target",
        type=local_path,
        metavar="RUN|CHECKPOINT",
        help="a run, a checkpoint or a model folder",
    )
    add("--data", type=path_text, help="a generator's name or a file; None: the run's own")
    add("--split", type=_name, default="test", help="part of the data")
    add("--images", type=whole_number(1), default=320, help="images to measure")
    add("--refinement-steps", type=whole_number(0), help="None: the model's own number")
    add("--num-slots", type=whole_number(1), help="None: the model's own number")
    add("--batch-size", type=whole_number(1), default=32, help="images at a time")
    add("--seed", type=whole_number(0), default=0, help="of the noise")
    add("--crop", choices=["clevr"], help="None: as in the run")
    add("--value-range", type=number_range, metavar="[LOW,HIGH]", help="None: the file's own")
    add("--size", type=whole_number(1), help="side to resize to; None: as in the run")
    add("--device", choices=["auto", "cpu"], default="auto", help="auto takes a GPU if any")
    add("--json", type=local_path, metavar="FILE", help="write the result there too")
    return parser


def _name(text: str) -> str:
    """A split's name, which becomes a part of a file's."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"expected a name, got {text!r}")
    return text


def _data(options: argparse.Namespace, run: RunFolder | None) -> DataConfig:
    """The run's data, with what the command line changes."""
    from emorl.training.config import DataConfig
    from emorl.training.images import with_absolute_paths

    data = DataConfig()
    if run is not None:
        from emorl.training.config_file import load_config

        data = with_absolute_paths(load_config(run.config).data)
    data.crop, data.size = options.crop or data.crop, options.size or data.size
    if options.value_range is not None and options.data is None:
        data.value_range = data.held_out_value_range = options.value_range
    return data


def _open(options: argparse.Namespace, run: RunFolder | None, data: DataConfig) -> ObjectDataset:
    from emorl.data import open_dataset

    if options.data is not None:
        return open_dataset(
            options.data,
            split=options.split,
            seed=data.seed,
            crop=data.crop,
            size=data.size,
            value_range=options.value_range or _decided_range(options.data, data),
        )
    if run is None:
        raise ValueError(f"--data: needed, since {options.target} belongs to no run")
    from emorl.training.images import held_out_images

    held_out = held_out_images(data, options.split)
    if held_out is None:
        raise ValueError(
            f"--data: needed, since {data.train} has no split {options.split!r} that the run "
            f"was not trained on"
        )
    return held_out


def _decided_range(named: str, data: DataConfig) -> ValueRange | None:
    """What the run has decided about a file, if it is one of its own."""
    from emorl.training.images import absolute

    ranges = {data.held_out: data.held_out_value_range, data.train: data.value_range}
    return ranges.get(absolute(named))


def _is_trained_on(data: DataConfig, dataset: ObjectDataset) -> bool:
    """Whether these are the run's training images; False where those are no longer there."""
    from emorl.training.images import same_images, training_images

    try:
        return same_images(training_images(data), dataset)
    except ValueError:
        return False


def _stem(options: argparse.Namespace, model: ObjectCentricModel, name: str, split: str) -> str:
    """The result's name in a run: of the data and of what was asked for beside the usual."""
    asked = {
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


def _destinations(options: argparse.Namespace, run: RunFolder | None, stem: str) -> list[Path]:
    """The JSON's files: in the run's folder, if a run was evaluated, and the one of `--json`."""
    paths = []
    if run is not None and run.path == real(options.target):
        paths.append(RunFolder(options.target).evaluation(stem))
    return [*paths, *([options.json] if options.json else [])]


def _require_replaceable(path: Path, checkpoint: Path, data: str, images: int) -> None:
    """Refuse to replace the result of other data, or of more images of the same checkpoint.

    Raises:
        ValueError: if such a result is there.
    """
    try:
        before = read_json(path)
        its_data, its_images = Path(before["data"]), int(before["images"])
        same_checkpoint = Path(before["checkpoint"]).name == checkpoint.name
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return  # nothing that could be lost
    holds = None
    if its_data.is_absolute() and Path(data).is_absolute() and its_data != Path(data):
        holds = f"the result of {its_data}"
    elif same_checkpoint and its_images > images:
        holds = f"the result of {its_images} images, more than {images}"
    if holds:
        raise ValueError(
            f"{path}: holds {holds}; move it away, or evaluate {checkpoint} with --json FILE"
        )


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: null stands for a metric that no image defines."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
