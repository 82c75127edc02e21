"""`emorl data`: store, convert and check data sets."""

from __future__ import annotations

from emorl.cli.arguments import Parser, local_path, number_range, path_text, whole_number
from emorl.runs.files import require_place
from emorl.suggestions import near

_COMMANDS = {
    "generate": "store a generator's images as an HDF5 file",
    "convert": "store a file's images as HDF5 in EfficientMORL's layout",
    "check": "describe a data set and list its faults",
}


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
    parser = Parser(f"data {command}", f"{_COMMANDS[command].capitalize()}.")
    kind = "a generator's name" if command == "generate" else "a file"
    parser.add_argument("source", type=path_text, help=kind)
    parser.add_argument("--out", type=local_path, required=True, help="the new HDF5 file")
    parser.add_argument(
        "--images", type=whole_number(1), required=command == "generate", help="None: all"
    )
    parser.add_argument("--split", default="train", help="part to read, and group to write")
    if command == "generate":
        parser.add_argument("--seed", type=whole_number(0), default=0, help="of the generator")
    else:
        _add_value_range(parser)
    options = parser.parse(arguments)
    require_place(options.out, "--out")

    from emorl.data import GENERATORS, convert, open_dataset

    if command == "generate" and options.source not in GENERATORS:
        hint = near(options.source, GENERATORS)
        raise ValueError(f"no generator is called {options.source}{hint}")
    seed = options.seed if command == "generate" else 0
    asked = options.value_range if command == "convert" else None
    dataset = open_dataset(options.source, split=options.split, seed=seed, value_range=asked)
    path = convert(dataset, options.out, options.images, split=options.split)
    print(f"written: {path}")
    return 0


def _check(arguments: list[str]) -> int:
    parser = Parser("data check", f"{_COMMANDS['check'].capitalize()}.")
    parser.add_argument("source", type=path_text, help="a generator's name or a file")
    parser.add_argument("--images", type=whole_number(1), default=1000, help="how many to read")
    parser.add_argument("--all", action="store_true", help="read all images")
    _add_value_range(parser)
    options = parser.parse(arguments)

    from emorl.data import check

    images = None if options.all else options.images
    print(check(options.source, images, value_range=options.value_range))
    return 0


def _add_value_range(parser: Parser) -> None:
    parser.add_argument(
        "--value-range",
        type=number_range,
        metavar="[LOW,HIGH]",
        help="what the file's numbers mean, [0,1] or [0,255]; None: the file decides",
    )
