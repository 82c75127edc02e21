"""Argument parsing with error messages of one line."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from emorl.fields import shown
from emorl.paths import is_path, local
from emorl.suggestions import near

CROPS = ("clevr", "clevr-bilinear", "clevrtex", "centre")
"""Names that `emorl.data.transforms.cut` takes; they stand here, too, since that needs torch."""
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_SWEEP = re.compile(r"(refinement-steps|num-slots)=([0-9]{1,9})(\.\.[0-9]{1,9}|(?:,[0-9]{1,9})+)")
_MOST_SWEPT = 100


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option that has one; the others say in their text what holds."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_none = action.default is None or action.nargs == 0 or action.default == []
        return action.help if has_none else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises a ValueError of one line instead of printing its usage."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"emorl {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=_Formatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise the message as a ValueError."""
        raise ValueError(message)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments; an unknown one gets the nearest known one suggested."""
        known, unknown = self.parse_known_args(list(arguments))
        if unknown:
            name = unknown[0].partition("=")[0]
            options = self._option_string_actions if name.startswith("-") else []
            raise ValueError(f"unknown argument {shown(name)}{near(name, options)}")
        single = {action.dest for action in self._actions if action.nargs is None}
        for name, value in vars(known).items():
            if name in single and isinstance(value, list):  # argparse's answer to --name=--
                raise ValueError(f"argument --{name}: expected one argument")
        return known


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument's type: an integer from `least` to `most`, or of at most 18 digits."""
    expected = f">= {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        if not _WHOLE.fullmatch(text) or not least <= int(text) <= (most or int(text)):
            large = most is None and text.isdecimal() and len(text) > 18
            bound = f"{expected} of at most 18 digits" if large else expected
            raise argparse.ArgumentTypeError(f"expected a whole number {bound}, got {shown(text)}")
        return int(text)

    return parse


def number(text: str) -> float:
    """An argument's type: a number that is finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {shown(text)}")
    return value


def path_text(text: str) -> str:
    """An argument's type: text that can be a path, or a name in place of one."""
    if not is_path(text):
        raise argparse.ArgumentTypeError(f"expected a path, got {shown(text)}")
    return text


def local_path(text: str) -> Path:
    """An argument's type: a path, with "~" as the user's home folder."""
    return local(path_text(text))


def number_range(text: str) -> tuple[float, float]:
    """An argument's type: two numbers, written [LOW,HIGH]."""
    try:
        low, high = map(float, text.strip("[]() ").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected [LOW,HIGH], got {text}") from None
    return low, high


def crop(text: str) -> str | tuple[int, ...]:
    """An argument's type: the name of a crop, or four numbers in brackets."""
    if text in CROPS:
        return text
    if (numbers := _whole_numbers(text, 4)) is None:
        names = ", ".join(CROPS)
        raise argparse.ArgumentTypeError(
            f"expected {names} or [FIRST_ROW,ROW_AFTER,FIRST_COLUMN,COLUMN_AFTER], "
            f"got {shown(text)}"
        )
    return numbers


def image_size(text: str) -> int | tuple[int, ...]:
    """An argument's type: a side, or [HEIGHT,WIDTH], in pixels."""
    numbers = _whole_numbers(text, 1) or _whole_numbers(text, 2)
    if numbers is None or min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a side or [HEIGHT,WIDTH], each at least 1, got {shown(text)}"
        )
    return numbers[0] if len(numbers) == 1 else numbers


def _whole_numbers(text: str, count: int) -> tuple[int, ...] | None:
    """So many whole numbers, written [A,B,...]; None if the text is something else."""
    parts = [part.strip() for part in text.strip("[]() ").split(",")]
    if len(parts) != count or not all(map(_WHOLE.fullmatch, parts)):
        return None
    return tuple(map(int, parts))


def sweep_of(text: str) -> tuple[str, list[int]]:
    """An argument's type: what is swept, as Python names it, and its numbers in order.

    They are written NAME=FIRST..LAST or NAME=A,B,C.
    """
    match = _SWEEP.fullmatch(text)
    values: set[int] = set()
    if match and match[3].startswith(".."):
        first, last = int(match[2]), int(match[3][2:])
        values = {*range(first, min(last, first + _MOST_SWEPT) + 1)}
    elif match:
        values = {*map(int, f"{match[2]}{match[3]}".split(","))}
    if match is None or not 2 <= len(values) <= _MOST_SWEPT:
        raise argparse.ArgumentTypeError(
            f"expected refinement-steps=0..6 or num-slots=5,7,9, with 2 to {_MOST_SWEPT} numbers, "
            f"got {shown(text)}"
        )
    return match[1].replace("-", "_"), sorted(values)
