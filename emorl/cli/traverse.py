"""`emorl traverse`: what the dimensions of slots change, as grids, GIFs and films."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl.cli.arguments import Parser, local_path, whole_number
from emorl.cli.held_out import add_data_options, data_of, open_images, read_from, spec_of
from emorl.extras import require_package
from emorl.runs.files import replacing, require_place, write_atomically
from emorl.runs.folder import own_run, run_of
from emorl.runs.outputs import PICTURE, TRAVERSALS, require_output
from emorl.runs.trained import short_name
from emorl.terminal import tracked

if TYPE_CHECKING:
    from torch import Tensor

    from emorl.models import ObjectCentricModel
    from emorl.report.tiles import Bytes

_DESCRIPTION = (
    "Take the most active dimensions of each slot with pixels through their range, one at a time, "
    "and draw the picture recomposed at each value: a PNG with all values side by side and a GIF "
    "for each image, in RUN/traversals. The range of a dimension is that of its samples over the "
    "images that are measured."
)


def run(arguments: list[str]) -> int:
    """Write the pictures and print their paths."""
    options = _parser().parse(arguments)

    place = _place(options)
    _require_free(options, place, [], read_from(options.data))
    if options.mp4:
        require_package("imageio_ffmpeg")  # it would be missed after the work otherwise

    from emorl.evaluation.traversals import active, activeness, infer, ranges
    from emorl.models import find_model
    from emorl.training.config import TrainerConfig
    from emorl.training.devices import make_accelerator

    folder, model = find_model(options.target)
    owner = run_of(options.target)
    data = data_of(options, owner)
    dataset, split, _ = open_images(options, owner, data)
    pictures = _pictures(place, dataset.count(options.images), options.mp4)
    _require_free(options, place, pictures, read_from(spec_of(options, data), dataset))
    accelerator = make_accelerator(TrainerConfig(device=options.device, precision="no"))
    model.to(accelerator.device)
    samples = infer(model, dataset, options.measured, means=False, seed=options.seed)
    shown = infer(model, dataset, options.images, means=True, seed=options.seed)
    low, high = ranges(samples)
    activity = activeness(model, samples, seed=options.seed)
    dimensions = active(activity)[: options.dimensions]
    if not len(dimensions):
        name = short_name(options.target)
        raise ValueError(f"{name}: expected a dimension that changes a picture, got none")
    record = {
        "checkpoint": str(folder),
        "data": dataset.name,
        "split": split,
        "measured_images": len(samples),
        "dimensions": dimensions.tolist(),
        "activeness": activity.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "values": options.values,
    }
    written = [_json(place / "traversals.json", record)]
    inputs = dataset.read_images(range(len(shown)))
    ends = low, high
    for index in tracked(range(len(shown)), "drawing", "image"):
        drawn = _drawn(model, inputs[index], shown[index], dimensions, ends, activity, options)
        written += _write(_pictures(place, 1, options.mp4, first=index), *drawn)
    accelerator.end_training()
    print(*(f"written: {path}" for path in written), sep="\n")
    return 0


def _parser() -> Parser:
    parser = Parser("traverse", _DESCRIPTION)
    add = parser.add_argument
    add(
        "target",
        type=local_path,
        metavar="RUN|CHECKPOINT",
        help="a run, a checkpoint, a model folder or a trained model's name",
    )
    add("--out", type=local_path, help="folder for the pictures (default: RUN/traversals)")
    add_data_options(parser)
    add("--images", type=whole_number(1), default=4, help="the first images to draw")
    add("--dimensions", type=whole_number(1), default=6, help="at most, the most active ones")
    add("--values", type=whole_number(2), default=7, help="along each dimension")
    add("--measured", type=whole_number(1), default=100, help="images for range and activeness")
    add("--mp4", action="store_true", help="films as well; needs imageio-ffmpeg")
    add("--seed", type=whole_number(0), default=0, help="of the noise")
    add("--device", choices=["auto", "cpu"], default="auto", help="auto takes a GPU if any")
    return parser


def _place(options: argparse.Namespace) -> Path:
    if options.out is not None:
        return Path(options.out)
    run = own_run(options.target)
    if run is None:
        raise ValueError(f"--out: needed, since {options.target} is no run")
    return run.traversals


def _require_free(
    options: argparse.Namespace, place: Path, pictures: list[Path], data: list[Path]
) -> None:
    """Make sure that nothing is lost; RUN/traversals is this command's own."""
    record = place / "traversals.json"
    if options.out is None:
        require_place(record, "RUN")
        return
    require_output(record, "--out", TRAVERSALS, data)
    for picture in pictures:
        require_output(picture, "--out", PICTURE, data)


def _pictures(place: Path, images: int, films: bool, *, first: int = 0) -> list[Path]:
    """The files of so many images: PNG, GIF and, with films, MP4 of each."""
    endings = (".png", ".gif", *([".mp4"] if films else []))
    return [
        place / f"image-{index:04d}{ending}"
        for index in range(first, first + images)
        for ending in endings
    ]


def _drawn(
    model: ObjectCentricModel,
    image: Tensor,
    slots: Tensor,
    dimensions: Tensor,
    ends: tuple[Tensor, Tensor],
    activity: Tensor,
    options: argparse.Namespace,
) -> tuple[Bytes, list[Bytes]]:
    """One image's sheet, and its frames."""
    from emorl.evaluation.traversals import recompose, traverse
    from emorl.report.traversals import traversal_frames, traversal_sheet

    own = recompose(model, slots)
    chosen = own.labels().unique().tolist()
    traversals = traverse(model, slots, dimensions, *ends, options.values, chosen=chosen)
    return (
        traversal_sheet(image, own, traversals, activity),
        traversal_frames(image, own, traversals),
    )


def _write(pictures: list[Path], sheet: Bytes, frames: list[Bytes]) -> list[Path]:
    """Write one image's pictures."""
    from emorl.report.tiles import gif, png, write_mp4

    still, moving, *films = pictures
    write_atomically(still, png(sheet))
    write_atomically(moving, gif(frames))
    for film in films:
        with replacing(film) as unfinished:
            write_mp4(unfinished, frames)
    return pictures


def _json(path: Path, record: dict[str, Any]) -> Path:
    return write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
