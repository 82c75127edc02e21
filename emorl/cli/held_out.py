"""The images that a command measures a model on: a run's own, or those of `--data`."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from emorl.cli.arguments import Parser, crop, image_size, number_range, path_text
from emorl.paths import local
from emorl.runs.folder import RunFolder

if TYPE_CHECKING:
    from emorl.data import ObjectDataset
    from emorl.data.values import ValueRange
    from emorl.training.config import DataConfig


class Measured(NamedTuple):
    """Images to measure a model on.

    Attributes:
        dataset: the images.
        split: whose they are, by its own name; "all" where a file or folder is not divided.
        notes: what a reader of results should know of them.
    """

    dataset: ObjectDataset
    split: str
    notes: list[str]


def add_data_options(parser: Parser) -> None:
    """Add the options that choose images."""
    add = parser.add_argument
    add(
        "--data",
        type=path_text,
        help="a generator's name, a file or a folder (default: the run's own)",
    )
    add(
        "--split",
        type=_name,
        help="part of the data (default: test, but of the run's data.held_out val if it has no "
        "test, or the only group, or all of a folder)",
    )
    add("--crop", type=crop, metavar="CROP", help="as data.crop of a run (default: the run's)")
    add(
        "--value-range",
        type=number_range,
        metavar="[LOW,HIGH]",
        help="what the file's numbers mean, [0,1] or [0,255] (default: as in the run, or the file "
        "decides)",
    )
    add(
        "--size",
        type=image_size,
        metavar="SIDE|[HEIGHT,WIDTH]",
        help="to resize to (default: the run's)",
    )


def _name(text: str) -> str:
    """A split's name, which becomes a part of a file's."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"expected a name, got {text!r}")
    return text


def data_of(options: argparse.Namespace, run: RunFolder | None) -> DataConfig:
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


def read_from(spec: str | None, dataset: ObjectDataset | None = None) -> list[Path]:
    """The files and folders of data, which nothing that is written may replace or join.

    Args:
        spec: a file or folder, or a generator's name, which has none; None for no data.
        dataset: that was opened, whose files are more where a pattern names them.
    """
    own = [] if spec is None or not local(spec).exists() else [local(spec)]
    return [*own, *(dataset.files() if dataset is not None else ())]


def spec_of(options: argparse.Namespace, data: DataConfig) -> str:
    """What is opened: a generator's name or an absolute path."""
    from emorl.training.images import absolute

    return absolute(options.data or data.held_out or data.train)


def open_images(options: argparse.Namespace, run: RunFolder | None, data: DataConfig) -> Measured:
    """The images to measure on.

    Raises:
        ValueError: if none are named and the run has none that it was not trained on, or these have
            no such split.
    """
    if options.data is None and run is None:
        raise ValueError(f"--data: needed, since {options.target} belongs to no run")
    from emorl.data.splits import ALL
    from emorl.training.trace import changed_since

    split = _split(options, data)
    dataset = _opened(options, data, split)
    notes = [] if run is None else changed_since(run, data)
    if run is not None and _is_trained_on(data, dataset):
        return Measured(dataset, data.split, ["the run was trained on these images", *notes])
    if run is not None and split == ALL and spec_of(options, data) == data.train:
        notes = ["the run was trained on some of these images", *notes]
    return Measured(dataset, ALL if dataset.is_whole else split, notes)


def _split(options: argparse.Namespace, data: DataConfig) -> str:
    """The split that is asked for, or what is usual."""
    from emorl.training.images import usual_split

    if options.split is not None:
        return str(options.split)
    if options.data is None and data.held_out is not None:
        return usual_split(data.held_out)
    return "test"


def _opened(options: argparse.Namespace, data: DataConfig, split: str) -> ObjectDataset:
    from emorl.data import open_dataset
    from emorl.training.images import held_out_images, training_images

    if options.data is not None:
        return open_dataset(
            options.data,
            split=split,
            seed=data.seed,
            max_objects=data.max_objects if _is_own(options.data, data) else None,
            crop=data.crop,
            size=data.size,
            value_range=options.value_range or _decided_range(options.data, data),
        )
    held_out = held_out_images(data, split)
    if held_out is None:
        if options.split is not None:  # where there is none of that name, its error names others
            training_images(replace(data, split=split))
        raise ValueError(
            f"--data: needed, since {data.train} has no split {split!r} that the run was not "
            "trained on"
        )
    return held_out


def _is_trained_on(data: DataConfig, dataset: ObjectDataset) -> bool:
    """Whether these are the run's training images, which then are of the split `data.split`.

    A file without splits gives all its images whatever the split. False where the training images
    are no longer there.
    """
    from emorl.training.images import same_images, training_images

    try:
        return same_images(training_images(data), dataset)
    except ValueError:
        return False


def _is_own(named: str, data: DataConfig) -> bool:
    """Whether these data are a file of the run's."""
    from emorl.data import GENERATORS
    from emorl.training.images import absolute

    return named not in GENERATORS and absolute(named) in (data.train, data.held_out)


def _decided_range(named: str, data: DataConfig) -> ValueRange | None:
    """What the run has decided about a file, if it is one of its own."""
    from emorl.training.images import absolute

    ranges = {data.held_out: data.held_out_value_range, data.train: data.value_range}
    return ranges.get(absolute(named))
