"""Output to streams whose reader may go, or that were closed from the start."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")


class Terminal:
    """Output stream that drops what it is given once its reader has gone.

    Nothing must end because a terminal or the other end of a pipe (`| head`) was closed.

    Args:
        stream: stdout or stderr; None where the process was started without it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write and flush."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: closed in this process
            self._drop()
        return len(text)

    def flush(self) -> None:
        """Do nothing, since `write` flushes."""

    def isatty(self) -> bool:
        """Whether somebody reads along; no stream that was closed."""
        try:
            return self._stream.isatty()
        except ValueError:
            return False

    def __eq__(self, other: object) -> bool:
        """Whether both write to one stream: then a bar makes room for a line (`tqdm.write`)."""
        return isinstance(other, Terminal) and self._stream is other._stream

    def __hash__(self) -> int:
        return hash(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self) -> None:
        """Redirect the stream, with what its buffer holds, to the null device."""
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


def tracked(items: Sequence[T], word: str, unit: str, *, show: bool = True) -> Iterator[T]:
    """The items, with a bar of `progress` while they are worked on, unless it is not to `show`."""
    bar: Iterable[T] = items
    if show:
        with suppress(ModuleNotFoundError):  # tqdm is of the extra "train"
            bar = progress(items, desc=word, unit=unit, leave=False)
    yield from bar


def progress(*items: Sequence[T], **options: Any) -> tqdm[T]:
    """Tqdm's bar on stderr, if that is a terminal; a line of `tqdm.write` goes above it."""
    from tqdm import tqdm

    stderr = Terminal(sys.stderr)
    return tqdm(*items, file=stderr, disable=None, dynamic_ncols=True, **options)


def escape_letters() -> None:
    """Let standard output and error write as an escape what their encoding has no letter for."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def reserve_streams() -> None:
    """Give the numbers of closed standard streams to the null device.

    Else the next file that is opened gets the number, and with it what libraries write there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
