"""Bars on terminals, and nothing elsewhere."""

import io
import os
import pty
import re
import sys
import termios

import pytest
from tqdm import tqdm

from emorl.terminal import Terminal, tracked


@pytest.mark.parametrize("show", [True, False])
def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, show: bool) -> None:
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 80))
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert [*tracked(range(3), "measuring", "batch", show=show)] == [0, 1, 2]
        terminal.write("end")
        terminal.flush()
        written = b""
        while not written.endswith(b"end"):
            written += os.read(reader, 10_000)
    os.close(reader)
    assert (b"measuring:   0%|" in written) == (b"batch/s" in written) == show


def test_a_line_goes_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `emorl segment` writes of a picture that it leaves out."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    for _ in tracked("ab", "measuring", "image"):
        tqdm.write("left out", file=Terminal(screen))
    lines = re.split("[\r\n]+", screen.getvalue())
    assert lines.count("left out") == 2


def test_a_closed_stream_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert [*tracked("ab", "measuring", "image")] == ["a", "b"]


def test_without_tqdm_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert [*tracked("ab", "measuring", "image")] == ["a", "b"]


def test_others_get_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert [*tracked("ab", "measuring", "image")] == ["a", "b"]
    assert capsys.readouterr().err == ""
