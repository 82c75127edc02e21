"""The files of results: those that a run keeps, and what none of them may replace."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl.runs.files import read_json
from emorl.runs.folder import own_run
from emorl.runs.outputs import EVALUATION, PICTURE, require_outputs

if TYPE_CHECKING:
    from emorl.models import ObjectCentricModel


def require_free(options: argparse.Namespace, data: Iterable[Path]) -> None:
    """Make sure that `--json` and `--plot` can be written, and replace earlier results alone.

    Args:
        options: of the command line.
        data: files and folders that are read.

    Raises:
        ValueError: as `require_outputs` does.
    """
    named = {"--json": (options.json, EVALUATION), "--plot": (options.plot, PICTURE)}
    require_outputs({o: (path, kind) for o, (path, kind) in named.items() if path}, data)


def kept_files(
    options: argparse.Namespace,
    model: ObjectCentricModel,
    data: str,
    split: str,
) -> list[Path]:
    """The files in the run's folder: JSON, CSV and, of a sweep, PNG; none without a run."""
    run = own_run(options.target)
    if run is None:
        return []
    stem = _stem(options, model, data, split)
    if options.sweep:
        return [run.sweep(stem).with_suffix(ending) for ending in (".json", ".csv", ".png")]
    return [run.evaluation(stem).with_suffix(ending) for ending in (".json", ".csv")]


def _stem(options: argparse.Namespace, model: ObjectCentricModel, data: str, split: str) -> str:
    """A result's name: of the data and of what was asked for beside the usual."""
    from emorl.training.images import absolute

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
    parts = [
        f"{key}{'x'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for key, (value, usual) in asked.items()
        if value not in (None, usual)
    ]
    if options.sweep:
        name, values = options.sweep
        parts.append(f"{name.replace('_', '-')}{_span(values)}")
    name = Path(absolute(options.data) if options.data else data).name.lstrip(".")
    stem = re.sub(r"[*?\[\]]+", "_", name.partition(".")[0]) or "data"
    return "-".join([stem, *([] if split == "test" else [split]), *parts])


def _span(values: Sequence[int]) -> str:
    """Numbers as a part of a name: 0to6, or 3-5-7."""
    if [*values] == [*range(values[0], values[-1] + 1)]:
        return f"{values[0]}to{values[-1]}"
    return "-".join(map(str, values))


def require_replaceable(
    path: Path,
    checkpoint: Path,
    data: str,
    source: str,
    images: int,
    options: argparse.Namespace,
) -> None:
    """Refuse to replace a result of other data, or one of the same checkpoint that holds more.

    Args:
        path: the result's JSON file.
        checkpoint: the model's.
        data: name, or absolute path.
        source: the files of the images, or their generator, and how they are cut and resized.
        images: to measure.
        options: of the command line, which tell what else will be measured.

    Raises:
        ValueError: if such a result is there.
    """
    try:
        before = read_json(path)
        its_images = int(before["images"])
        its_data, its_source = str(before["data"]), before.get("source")
        same_checkpoint = Path(before["checkpoint"]).name == checkpoint.name
        more = [name for name in _metrics(before) if name.startswith(_not_asked_for(options))]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, AttributeError, IndexError):
        return  # nothing that could be lost
    holds = None
    # Results of earlier versions tell no source; the run's own data have a name in place of a path.
    if (its_data != data) if its_source is None else (its_source != source):
        holds = f"the result of {its_source or its_data}"
    elif same_checkpoint and its_images > images:
        holds = f"the result of {its_images} images, more than {images}"
    elif same_checkpoint and more:
        holds = f"{', '.join(more[:3])}, which would be lost"
    if holds:
        raise ValueError(
            f"{path}: holds {holds}; move it away, or evaluate {checkpoint} with --json FILE"
        )


def _metrics(result: dict[str, Any]) -> Iterable[str]:
    """The names of what a result holds."""
    measured: dict[str, Any] = (result["points"][0] if "points" in result else result)["metrics"]
    return measured


def _not_asked_for(options: argparse.Namespace) -> tuple[str, ...]:
    """Beginnings of the names of metrics that the options leave out."""
    wanted = {
        "attention_": options.attention,
        "lpips": options.lpips,
        "dci_": options.disentanglement != "no",
    }
    return tuple(name for name, is_wanted in wanted.items() if not is_wanted)
