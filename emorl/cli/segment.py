"""`emorl segment`: own pictures in, label maps, overlays and a contact sheet out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from emorl.cli.arguments import Parser, local_path, number_range, whole_number
from emorl.paths import real
from emorl.runs.files import write_atomically
from emorl.runs.outputs import PICTURE, require_output
from emorl.terminal import Terminal

if TYPE_CHECKING:
    from emorl.evaluation.own_pictures import Segmented
    from emorl.report.tiles import Bytes

_DESCRIPTION = (
    "Segment all pictures of a folder. Each is resized to the model's size; masks are resized back "
    "to the picture's. Writes DIR/labels (PNG, a pixel's value is its slot), DIR/overlays and "
    "DIR/contact.png. A picture that cannot be read is named and left out."
)
_MOST_SLOTS = 256  # whose numbers fit into the labels of a PNG
_SHEET, _COLUMNS, _SIDE = 48, 4, 160  # pictures on a contact sheet, pairs in a row, pixels


def run(arguments: list[str]) -> int:
    """Write the pictures and print where they are."""
    parser = Parser("segment", _DESCRIPTION)
    add = parser.add_argument
    add(
        "target",
        type=local_path,
        metavar="RUN|CHECKPOINT",
        help="a run, a checkpoint, a model folder or a trained model's name",
    )
    add("folder", type=local_path, metavar="FOLDER", help="of the pictures, with its subfolders")
    add("--out", type=local_path, required=True, metavar="DIR", help="folder for the results")
    add("--refinement-steps", type=whole_number(0), help="None: the model's own number")
    add("--num-slots", type=whole_number(1, _MOST_SLOTS), help="None: the model's own number")
    add("--batch-size", type=whole_number(1), default=16, help="pictures at a time")
    add("--seed", type=whole_number(0), default=0, help="of the noise that slots start from")
    add("--device", choices=["auto", "cpu"], default="auto", help="auto takes a GPU if any")
    add(
        "--value-range",
        type=number_range,
        metavar="[LOW,HIGH]",
        help="what the pictures' numbers mean, [0,1] or [0,255]; None: what their format says",
    )
    options = parser.parse(arguments)

    require_output(options.out / "contact.png", "--out", PICTURE)
    _require_apart(options.out, options.folder)

    from tqdm import tqdm

    from emorl.data.readers.clevrtex import is_clevrtex, scenes_of
    from emorl.data.readers.images import find_pictures
    from emorl.evaluation.own_pictures import segment
    from emorl.models import find_model
    from emorl.training.config import TrainerConfig
    from emorl.training.devices import make_accelerator

    names = (
        [name for _, _, name in scenes_of(options.folder)]
        if is_clevrtex(options.folder)
        else find_pictures(options.folder)
    )
    paths = [options.folder / name for name in names]
    _require_different_names(paths, options.folder)
    for place in (place for path in paths for place in _places(path, options)):
        require_output(place, "--out", PICTURE)
    _, model = find_model(options.target)
    accelerator = make_accelerator(TrainerConfig(device=options.device, precision="no"))
    results = segment(
        model.to(accelerator.device),
        paths,
        num_slots=options.num_slots,
        refinement_steps=options.refinement_steps,
        batch_size=options.batch_size,
        seed=options.seed,
        value_range=options.value_range,
    )
    tiles, written, unread = [], 0, 0
    for result in results:
        if isinstance(result, ValueError):
            unread += 1
            tqdm.write(f"left out: {result}", file=Terminal(sys.stderr))
            continue
        pair = _write(result, *_places(result.path, options))
        written += 1
        if written <= _SHEET:
            tiles.append(pair)
    accelerator.end_training()
    if not tiles:
        raise ValueError(f"{options.folder}: none of its {unread} pictures can be read")
    sheet = _contact_sheet(tiles, options.out / "contact.png")
    left_out = f", {unread} left out" if unread else ""
    print(f"written: {written} pictures{left_out}, in {options.out / 'labels'} and ", end="")
    print(f"{options.out / 'overlays'}; {sheet}")
    return 0


def _require_apart(out: Path, folder: Path) -> None:
    """Refuse results that would lie among the pictures, or replace them."""
    pictures = real(folder)
    for name in ("labels", "overlays", "contact.png"):
        place = real(out / name)
        if place.is_relative_to(pictures) or pictures.is_relative_to(place):
            raise ValueError(f"--out: expected a folder apart from the pictures, got {out}/{name}")


def _result_name(path: Path, folder: Path) -> Path:
    name = path.relative_to(folder)
    if name.suffix.lower() == ".png":
        return name
    return name.with_name(f"{name.name}.png")  # a.jpg and a.png are two pictures


def _require_different_names(paths: list[Path], folder: Path) -> None:
    owners: dict[Path, Path] = {}
    for path in paths:
        other = owners.setdefault(_result_name(path, folder), path)
        if other != path:
            raise ValueError(f"{path}: expected another name, its results would replace {other}'s")


def _places(path: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """Where a picture's label map and overlay go."""
    name = _result_name(path, options.folder)
    return options.out / "labels" / name, options.out / "overlays" / name


def _write(result: Segmented, labels: Path, painted_over: Path) -> list[Bytes]:
    """Write a picture's label map and overlay; its two tiles for the contact sheet."""
    from emorl.report.tiles import label_png, overlay, png, thumbnail

    painted = overlay(result.image, result.labels)
    write_atomically(labels, label_png(result.labels))
    write_atomically(painted_over, png(painted))
    return [thumbnail(result.image, _SIDE), thumbnail(painted, _SIDE)]


def _contact_sheet(tiles: list[list[Bytes]], path: Path) -> Path:
    """Pictures beside their overlays, a few pairs in a row."""
    import numpy as np

    from emorl.report.tiles import png, tiled

    blank = np.full_like(tiles[0][0], 255)
    rows = []
    for start in range(0, len(tiles), _COLUMNS):
        row = [tile for pair in tiles[start : start + _COLUMNS] for tile in pair]
        rows.append(row + [blank] * (2 * min(_COLUMNS, len(tiles)) - len(row)))
    return write_atomically(path, png(tiled(rows)))
