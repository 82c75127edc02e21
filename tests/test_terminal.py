"""Bars on terminals, and nothing elsewhere."""

import os
import pty
import sys

import pytest

from emorl.terminal import tracked


@pytest.mark.parametrize("show", [True, False])
def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, show: bool) -> None:
    reader, writer = pty.openpty()
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


def test_others_get_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert [*tracked("ab", "measuring", "image")] == ["a", "b"]
    assert capsys.readouterr().err == ""
