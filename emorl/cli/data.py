"""`emorl data`: store, convert and check data sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl.cli import FAILURE
from emorl.cli.arguments import (
    Parser,
    crop,
    image_size,
    local_path,
    number_range,
    path_text,
    whole_number,
)
from emorl.cli.held_out import read_from
from emorl.paths import in_line
from emorl.runs.files import require_place, write_atomically
from emorl.runs.outputs import PICTURE, require_output
from emorl.suggestions import near

if TYPE_CHECKING:
    from emorl.data import ObjectDataset

_COMMANDS = {
    "generate": "store a generator's images as an HDF5 file",
    "convert": "store the images of a file or folder as HDF5 in EfficientMORL's layout",
    "check": "describe a data set and list its faults",
}
_ON_A_SHEET = 8  # images


def run(arguments: list[str]) -> int:
    """Run one of `generate`, `convert` and `check`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  emorl data {name:9} {text}" for name, text in _COMMANDS.items()]
        print("\n".join(["usage:", *lines, "", "emorl data NAME --help lists the arguments"]))
        return 0
    command, *rest = arguments
    if command not in _COMMANDS:
        raise ValueError(f"unknown argument {command}{near(command, _COMMANDS)}")
    return _check(rest) if command == "check" else _store(command, rest)


def _store(command: str, arguments: list[str]) -> int:
    parser = Parser(f"data {command}", _description(command))
    is_made = command == "generate"
    kind = "a generator's name" if is_made else "a file or a folder"
    parser.add_argument("source", type=path_text, help=kind)
    parser.add_argument("--out", type=local_path, required=True, help="the new HDF5 file")
    many = "how many" if is_made else "how many (default: all)"
    parser.add_argument("--images", type=whole_number(1), required=is_made, help=many)
    parser.add_argument("--split", default="train", help="part to read, and group to write")
    parser.add_argument(
        "--workers", type=whole_number(0), default=0, help="processes that store parts; 0: this one"
    )
    if is_made:
        parser.add_argument("--seed", type=whole_number(0), default=0, help="of the generator")
        parser.add_argument(
            "--size", type=whole_number(1), help="height and width (default: its own)"
        )
    else:
        parser.add_argument(
            "--max-objects",
            type=whole_number(0),
            help="keep images with so few, hidden ones counted (default: all)",
        )
        _add_reading(parser)
    options = parser.parse(arguments)
    require_place(options.out, "--out")

    from emorl.data import GENERATORS, convert, open_dataset

    if is_made and options.source not in GENERATORS:
        hint = near(options.source, GENERATORS)
        raise ValueError(f"no generator is called {options.source}{hint}")
    if is_made:
        own: dict[str, Any] = {"seed": options.seed, "size": options.size}
    else:
        own = {**_reading(options), "max_objects": options.max_objects}
    dataset = open_dataset(options.source, split=options.split, **own)
    path = convert(
        dataset, options.out, options.images, split=options.split, workers=options.workers
    )
    stored = len(dataset) if options.images is None else options.images
    print(f"written: {path}: split {options.split}, {stored:,} images{_left_out(dataset, options)}")
    return 0


def _description(command: str) -> str:
    text = _COMMANDS[command]
    return f"{text[0].upper()}{text[1:]}."


def _left_out(dataset: ObjectDataset, options: argparse.Namespace) -> str:
    """What of a file or folder is in other splits than the one that was stored, in words."""
    from emorl.data import GENERATORS
    from emorl.data.check import splits_of
    from emorl.data.splits import ALL

    if options.source in GENERATORS or options.split == ALL:
        return ""
    if others := [name for name in splits_of(options.source) if name not in (options.split, ALL)]:
        return f"; not stored: {', '.join(others)}"
    if dataset.is_whole or options.max_objects is not None:
        return f" ({dataset.part})" if dataset.part else ""
    return f" ({dataset.part}; --split {ALL} stores all)" if dataset.part else ""


def _check(arguments: list[str]) -> int:
    parser = Parser("data check", _description("check"))
    parser.add_argument("source", type=path_text, help="a generator's name, a file or a folder")
    parser.add_argument("--images", type=whole_number(1), default=1000, help="how many to read")
    parser.add_argument("--all", action="store_true", help="read all images")
    parser.add_argument(
        "--sheet", type=local_path, metavar="FILE.png", help="draw the first images with all labels"
    )
    _add_reading(parser)
    options = parser.parse(arguments)
    if options.sheet:
        _require_apart(options.sheet, read_from(options.source))

    from emorl.data.check import checked, open_checked, splits_of

    reading = _reading(options)
    drawn = None
    if options.sheet:
        drawn = open_checked(options.source, splits_of(options.source)[0], **reading)
        _require_apart(options.sheet, drawn.files())
    images = None if options.all else options.images
    found = checked(options.source, images, **reading)
    print(found.report)
    if drawn:
        _write_sheet(drawn, options.sheet)
    return 0 if found.is_readable else FAILURE


def _require_apart(sheet: Path, data: Sequence[Path]) -> None:
    """Refuse a sheet that would replace another file, or be one of a folder's pictures."""
    require_output(sheet, "--sheet", PICTURE, data)


def _write_sheet(dataset: ObjectDataset, path: Path) -> None:
    from emorl.data.check import readable
    from emorl.report.pictures import png
    from emorl.report.sheets import contact_sheet

    numbers = readable(dataset, _ON_A_SHEET)
    title = f"{in_line(dataset.name)}: images {', '.join(map(str, numbers))}"
    write_atomically(path, png(contact_sheet(dataset.__getitems__(numbers), title)))
    print(f"written: {path}")


def _add_reading(parser: Parser) -> None:
    """Add the options that say how images are read."""
    parser.add_argument(
        "--value-range",
        type=number_range,
        metavar="[LOW,HIGH]",
        help="what the file's numbers mean, [0,1] or [0,255] (default: the file decides)",
    )
    parser.add_argument(
        "--crop", type=crop, metavar="CROP", help="as data.crop of a run (default: all of an image)"
    )
    parser.add_argument(
        "--size",
        type=image_size,
        metavar="SIDE|[HEIGHT,WIDTH]",
        help="to resize to, which pictures of several sizes need (default: as they are)",
    )


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    """What these options tell `open_dataset`."""
    return {name: getattr(options, name) for name in ("value_range", "crop", "size")}
