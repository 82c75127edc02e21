"""`emorl segment`: own pictures in, label maps, overlays and a contact sheet out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from emorl.cli.arguments import Parser, local_path, number_range, whole_number
from emorl.fields import escaped
from emorl.paths import real
from emorl.runs.files import write_atomically
from emorl.runs.outputs import PICTURE, require_output
from emorl.terminal import Terminal

if TYPE_CHECKING:
    from emorl.evaluation.own_pictures import Segmented
    from emorl.report.tiles import Bytes

_DESCRIPTION = (
    "Segment a picture, or all of a folder. Each is resized to the model's size; masks are resized "
    "back to the picture's. Writes DIR/labels (PNG, a pixel's value is its slot), DIR/overlays and "
    "DIR/contact.png. A folder's picture that cannot be read is named and left out."
)
_MOST_SLOTS = 256  # whose numbers fit into the labels of a PNG
_LONGEST_NAME = 222  # bytes: with ".png", and what a name has while it is written, up to 255
_SHEET, _COLUMNS, _SIDE = 48, 4, 160  # pictures on a contact sheet, pairs in a row, pixels


def run(arguments: list[str]) -> int:
    """Write the pictures and print where they are."""
    options = _parser().parse(arguments)
    require_output(options.out / "contact.png", "--out", PICTURE)
    _require_apart(options.out, options.pictures)

    folder, listed, others = _listed(options.pictures)
    names = [name for name in listed if _is_short(name)]
    for name in listed:
        if not _is_short(name):
            error = f"{folder / name}: expected a name of up to {_LONGEST_NAME} bytes"
            _leave_out(ValueError(error), lone=options.pictures.is_file())
    _require_different_names(folder, names)
    _require_own_places(options.out, options.pictures, folder, names)
    tiles, written = [], 0
    for name, result in zip(names, _segmented(options, folder, names), strict=True):
        if isinstance(result, ValueError):
            _leave_out(result, lone=options.pictures.is_file())
            continue
        tile = _write(result, name, *_places(options.out, name))
        written += 1
        if written <= _SHEET:
            tiles.append(tile)
    if not tiles:
        raise ValueError(f"{folder}: no picture that can be read, {len(listed)} that cannot")
    sheet = _contact_sheet(tiles, options.out / "contact.png")
    found = _in_words(written, len(listed) - written, others)
    places = f"{options.out / 'labels'} and {options.out / 'overlays'}; {sheet}"
    print(f"written: {found}, in {places}")
    return 0


def _parser() -> Parser:
    parser = Parser("segment", _DESCRIPTION)
    add = parser.add_argument
    add(
        "target",
        type=local_path,
        metavar="RUN|CHECKPOINT",
        help="a run, a checkpoint, a model folder or a trained model's name",
    )
    add(
        "pictures",
        type=local_path,
        metavar="FOLDER|PICTURE",
        help="a folder of pictures, with its subfolders, or one picture",
    )
    add("--out", type=local_path, required=True, metavar="DIR", help="folder for the results")
    add("--refinement-steps", type=whole_number(0), help="of the slots (default: the model's own)")
    add(
        "--num-slots",
        type=whole_number(1, _MOST_SLOTS),
        help="of each picture (default: the model's own)",
    )
    add("--batch-size", type=whole_number(1), default=16, help="pictures at a time")
    add("--seed", type=whole_number(0), default=0, help="of the noise that slots start from")
    add("--device", choices=["auto", "cpu"], default="auto", help="auto takes a GPU if any")
    add(
        "--value-range",
        type=number_range,
        metavar="[LOW,HIGH]",
        help="what the pictures' numbers mean, [0,1] or [0,255] (default: as their format says)",
    )
    return parser


def _segmented(
    options: argparse.Namespace, folder: Path, names: list[str]
) -> Iterator[Segmented | ValueError]:
    """Each picture's result, or why it cannot be read."""
    from emorl.evaluation.own_pictures import segment
    from emorl.models import find_model
    from emorl.training.config import TrainerConfig
    from emorl.training.devices import make_accelerator

    _, model = find_model(options.target)
    accelerator = make_accelerator(TrainerConfig(device=options.device, precision="no"))
    yield from segment(
        model.to(accelerator.device),
        [folder / name for name in names],
        num_slots=options.num_slots,
        refinement_steps=options.refinement_steps,
        batch_size=options.batch_size,
        seed=options.seed,
        value_range=options.value_range,
    )
    accelerator.end_training()


def _leave_out(error: ValueError, *, lone: bool) -> None:
    """Name a picture that cannot be read, which ends the command if there is no other."""
    from tqdm import tqdm

    if lone:
        raise error
    tqdm.write(f"left out: {escaped(str(error))}", file=Terminal(sys.stderr))


def _in_words(written: int, unread: int, others: str) -> str:
    parts = [
        f"{written} picture" if written == 1 else f"{written} pictures",
        f"{unread} left out" if unread else "",
        f"passed over: {others}" if others else "",
    ]
    return ", ".join(filter(None, parts))


def _listed(pictures: Path) -> tuple[Path, list[str], str]:
    """The folder of the pictures, their names in it, and what other files it holds."""
    from emorl.data.open import passed_over
    from emorl.data.readers.clevrtex import is_clevrtex, scenes_of
    from emorl.data.readers.images import find_pictures

    if pictures.is_file():
        return pictures.parent, [pictures.name], ""
    if not pictures.is_dir():
        raise ValueError(f"{pictures}: expected a folder of pictures or a picture, got neither")
    if is_clevrtex(pictures):
        return pictures, [name for _, _, name in scenes_of(pictures)], ""
    return pictures, find_pictures(pictures), passed_over(pictures)


def _require_apart(out: Path, pictures: Path) -> None:
    """Refuse results that would lie among the pictures, or replace them."""
    read = real(pictures)
    for name in ("labels", "overlays", "contact.png"):
        place = real(out / name)
        if place.is_relative_to(read) or read.is_relative_to(place):
            raise ValueError(f"--out: expected a folder apart from the pictures, got {out}/{name}")


def _result_name(name: str) -> str:
    return name if name.lower().endswith(".png") else f"{name}.png"  # a.jpg and a.png are two


def _is_short(name: str) -> bool:
    return len(os.fsencode(PurePath(name).name)) <= _LONGEST_NAME


def _require_different_names(folder: Path, names: list[str]) -> None:
    owners: dict[str, str] = {}
    for name in names:
        other = owners.setdefault(_result_name(name), name)
        if other != name:
            raise ValueError(
                f"{folder / name}: expected another name, its results would replace "
                f"{folder / other}'s"
            )
    for name in names:
        for parent in map(str, PurePath(name).parents):
            if parent in owners:
                raise ValueError(
                    f"{folder / owners[parent]}: expected another name, its results would be in "
                    f"place of the folder of {folder / name}'s"
                )


def _require_own_places(out: Path, pictures: Path, folder: Path, names: list[str]) -> None:
    """Refuse, before any work, results that links lead to a picture, or to another result."""
    read = {real(pictures), *(real(folder / name) for name in names)}
    written: dict[Path, Path] = {}
    for path in [out / "contact.png", *(x for name in names for x in _places(out, name))]:
        require_output(path, "--out", PICTURE)
        place = real(path)
        if not read.isdisjoint((place, *place.parents)):
            raise ValueError(f"--out: expected files apart from the pictures, got {path}")
        if (other := written.setdefault(place, path)) != path:
            raise ValueError(f"--out: expected different files, got one: {other} and {path}")


def _places(out: Path, name: str) -> tuple[Path, Path]:
    """Where a picture's label map and overlay go."""
    return out / "labels" / _result_name(name), out / "overlays" / _result_name(name)


def _write(result: Segmented, name: str, labels: Path, painted_over: Path) -> Bytes:
    """Write a picture's label map and overlay; its tile for the contact sheet."""
    from emorl.report.tiles import captioned, label_png, overlay, png, thumbnail

    painted = overlay(result.image, result.labels)
    write_atomically(labels, label_png(result.labels))
    write_atomically(painted_over, png(painted))
    return captioned([thumbnail(x, _SIDE) for x in (result.image, painted)], name)


def _contact_sheet(tiles: list[Bytes], path: Path) -> Path:
    """Pictures beside their overlays, a few pairs in a row."""
    import numpy as np

    from emorl.report.tiles import png, tiled

    blank = np.full_like(tiles[0], 255)
    columns = min(_COLUMNS, len(tiles))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    rows[-1] += [blank] * (columns - len(rows[-1]))
    return write_atomically(path, png(tiled(rows)))
