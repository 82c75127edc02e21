"""What a file that emorl is asked to write may replace: an earlier one of its own kind, or nothing.

Whoever names the wrong file in a command must not lose it. So each kind of file can be told from
all others by what is in it, and what belongs to a run, to a model or to the data is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from emorl.paths import real
from emorl.runs.files import require_place
from emorl.runs.folder import CHECKSUMS, MODEL_FILES, STATE_FILE, WEIGHTS, RunFolder

MADE_BY = "emorl"
"""What pictures, films and drawings that emorl writes name as their program."""


class Kind(NamedTuple):
    """A kind of file that emorl writes.

    Attributes:
        words: what it is.
        marks: one of these bytes is in each such file.
        keys: of JSON: the names that each such file has.
    """

    words: str
    marks: tuple[bytes, ...] = ()
    keys: frozenset[str] = frozenset()

    def is_one(self, content: bytes) -> bool:
        """Whether a file with this content is of the kind."""
        if any(mark in content for mark in self.marks):
            return True
        if not self.keys:
            return False
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and self.keys <= {*found}


_NAME = MADE_BY.encode()
EVALUATION = Kind("the result of an evaluation", keys=frozenset({"protocol", "data"}))
TRAVERSALS = Kind("the record of traversals", keys=frozenset({"activeness", "dimensions"}))
BENCHMARK = Kind("a benchmark's record", keys=frozenset({"suite", "failures"}))
TABLE = Kind("a table of ablations", marks=(b"ablation,options,runs,", b"| FG-ARI in the paper"))
PAGE = Kind("a page of emorl's", marks=(b"<title>emorl bench: ", b": emorl report</title>"))
PICTURE = Kind(
    "a picture of emorl's",
    marks=(
        b"tEXtSoftware\0" + _NAME,  # PNG
        b"!\xfe" + bytes([len(_NAME)]) + _NAME,  # GIF
        b"\xa9cmt\0\0\0\x15data\0\0\0\1\0\0\0\0" + _NAME,  # MP4
        b"<dc:title>" + _NAME + b"</dc:title>",  # SVG
    ),
)


def require_output(path: Path, option: str, kind: Kind, data: Iterable[Path] = ()) -> None:
    """Make sure, before any work, that writing a file is possible and loses nothing.

    Args:
        path: the file, which may be there or not.
        option: that named it, for the message.
        kind: of file that will be written.
        data: files and folders that are read.

    Raises:
        ValueError: if it cannot be written, something of another kind is there, or it is a file of
            a run, of a model's folder, of the data, or in a folder of these, or among the trained
            models that come along.
    """
    require_place(path, option)
    place = real(path)
    if any(place.is_relative_to(real(other)) for other in data):
        raise ValueError(f"{option}: expected a file apart from the data, got {path}")
    for folder in place.parents:
        if place.relative_to(folder).parts[0] in _own_names(folder):
            raise ValueError(f"{option}: expected a file apart from those of {folder}, got {path}")
    require_kind(path, option, kind)


def require_kind(path: Path, option: str, kind: Kind) -> None:
    """Refuse to replace a file of another kind; what cannot be read is of none.

    Raises:
        ValueError: if such a file is there.
        OSError: if it cannot be read.
    """
    if path.exists() and not kind.is_one(path.read_bytes()):
        raise ValueError(f"{option}: expected a new file or {kind.words}, got another file: {path}")


def require_outputs(outputs: Mapping[str, tuple[Path, Kind]], data: Iterable[Path] = ()) -> None:
    """`require_output` for the options of one command, which name different files.

    Args:
        outputs: option -> path and kind.
        data: as there.

    Raises:
        ValueError: as there, and if two options name one file.
    """
    known: dict[Path, str] = {}
    data = [*data]
    for option, (path, kind) in outputs.items():
        require_output(path, option, kind, data)
        if (other := known.setdefault(real(path), option)) != option:
            raise ValueError(f"{option}: expected another file than {other}'s, got {path}")


def _own_names(folder: Path) -> set[str]:
    """The names that a run or a model gives to what is in its folder; none in other folders."""
    run = RunFolder(folder)
    names: set[str] = set()
    has_model = any((folder / name).is_file() for name in (WEIGHTS, STATE_FILE))
    if has_model:
        names |= {*MODEL_FILES, CHECKSUMS, STATE_FILE}
    if run.config.is_file() and (has_model or run.metrics.is_file() or run.checkpoints.is_dir()):
        names |= {place.name for name, place in vars(run).items() if name != "path"}
    return names
