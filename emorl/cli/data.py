"""`emorl data`: store, convert and check data sets."""

from __future__ import annotations

from pathlib import Path

from emorl.cli.arguments import Parser, whole_number
from emorl.suggestions import near

_WHAT = {
    "generate": "store a generator's images as an HDF5 file",
    "convert": "store a file's images as HDF5 in EfficientMORL's layout",
    "check": "say what is in a data set and what is wrong with it",
}


def run(arguments: list[str]) -> int:
    """Find what to do with data."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  emorl data {name:9} {text}" for name, text in _WHAT.items()]
        print("\n".join(["usage:", *lines, "", "emorl data NAME --help lists the arguments"]))
        return 0
    what, *rest = arguments
    if what not in _WHAT:
        raise ValueError(f"unknown argument {what}{near(what, _WHAT)}")
    return _check(rest) if what == "check" else _store(what, rest)


def _store(what: str, arguments: list[str]) -> int:
    parser = Parser(f"data {what}", f"{_WHAT[what].capitalize()}.")
    parser.add_argument("source", help="a generator's name" if what == "generate" else "a file")
    parser.add_argument("--out", type=Path, required=True, help="the new HDF5 file")
    parser.add_argument(
        "--images", type=whole_number(1), required=what == "generate", help="None: all"
    )
    parser.add_argument("--split", default="train", help="part to read, and group to write")
    if what == "generate":
        parser.add_argument("--seed", type=whole_number(0), default=0, help="of the generator")
    options = parser.parse(arguments)

    from emorl.data import GENERATORS, convert, open_dataset

    if what == "generate" and options.source not in GENERATORS:
        hint = near(options.source, GENERATORS)
        raise ValueError(f"no generator is called {options.source}{hint}")
    seed = options.seed if what == "generate" else 0
    dataset = open_dataset(options.source, split=options.split, seed=seed)
    path = convert(dataset, options.out, options.images, split=options.split)
    print(f"written: {path}")
    return 0


def _check(arguments: list[str]) -> int:
    parser = Parser("data check", f"{_WHAT['check'].capitalize()}.")
    parser.add_argument("source", help="a generator's name or a file")
    parser.add_argument("--images", type=whole_number(1), default=1000, help="how many to read")
    options = parser.parse(arguments)

    from emorl.data import check

    print(check(options.source, options.images))
    return 0
