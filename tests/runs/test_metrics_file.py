"""metrics.jsonl with lines that are no rows; a terminal that has gone."""

from __future__ import annotations

import errno
import io
import os
import threading

import pytest

from emorl.runs import RunFolder
from emorl.runs.log import RunLog, drop_rows_after
from emorl.terminal import Terminal

ROW = b'{"step": %d, "loss": 1.5}\n'


BAD_LINES = (
    *(b"\n", b"{\n", b"\x00\x00\xff\n", b"3\n", b"null\n", b"[" * 10_000 + b"\n"),
    *(b'{"loss": 1}\n', b'{"step": "x"}\n', b'{"step": null}\n'),
)


@pytest.mark.parametrize("bad", BAD_LINES, ids=lambda line: repr(line[:12]))
def test_a_bad_line_in_the_middle_loses_no_row(tmp_path, bad, capsys):
    run = RunFolder(tmp_path)
    run.metrics.write_bytes(ROW % 1 + bad + ROW % 2 + ROW % 3)
    RunLog(run, 2, 10).close()
    assert run.metrics.read_bytes() == ROW % 1 + ROW % 2
    line = "metrics.jsonl: 1 of its lines could not be read and are left out"
    assert line in capsys.readouterr().err


def test_a_torn_last_line_is_what_a_killed_process_leaves(tmp_path):
    metrics = RunFolder(tmp_path).metrics
    metrics.write_bytes(ROW % 1 + b'{"step": 2, "lo')
    assert drop_rows_after(metrics, 5) == 0
    assert metrics.read_bytes() == ROW % 1
    metrics.write_bytes(ROW % 1 + (ROW % 2).strip())
    assert drop_rows_after(metrics, 5) == 0
    assert metrics.read_bytes() == ROW % 1 + ROW % 2


def test_a_full_disk_is_one_error_that_names_the_file(tmp_path, monkeypatch, capsys):
    log = RunLog(RunFolder(tmp_path), 0, 10)

    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            self.flush()

    monkeypatch.setattr(log, "_metrics", Full())
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        log.row({"step": 1, "loss": 1.0})
    log.close()
    assert "metrics.jsonl: No space left on device" in capsys.readouterr().err


def test_a_pipe_without_a_reader_is_written_to_in_vain():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        terminal = Terminal(stream)
        for _ in range(3):
            print("a line", file=terminal)
        terminal.flush()
        stream.write("others too")
        stream.flush()


def test_a_stream_that_is_closed_or_was_never_there():
    stream = io.StringIO()
    stream.close()
    print("a line", file=Terminal(stream))
    print("a line", file=Terminal(None))


def test_a_stream_that_is_read_gets_everything():
    stream = io.StringIO()
    print("a line", file=Terminal(stream))
    assert stream.getvalue() == "a line\n"
    assert not Terminal(stream).isatty()


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", rb"see \xe9\u2192"), ("latin-1", b"see \xe9" + rb"\u2192")],
)
def test_a_line_that_a_terminal_cannot_write_is_escaped(encoding: str, written: bytes) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print("see é→", file=Terminal(stream))
    assert stream.buffer.getvalue() == written + b"\n"


def test_a_disk_that_is_full_when_tensorboard_begins_is_named(tmp_path, monkeypatch, capsys):
    """Neither its thread's traceback nor an error without a file."""
    run = RunFolder(tmp_path)

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", write)
    hook, before = threading.excepthook, threading.active_count()
    with pytest.raises(OSError, match="No space left") as caught:
        RunLog(run, 0, 2)
    assert caught.value.filename == str(run.tensorboard)
    assert threading.excepthook is hook
    assert threading.active_count() == before
    assert capsys.readouterr().err == ""
