"""Log of a run: `metrics.jsonl`, TensorBoard, and lines or a progress bar on the terminal."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from emorl.runs.files import naming, write_atomically
from emorl.runs.folder import RunFolder
from emorl.terminal import Terminal, progress

Row = dict[str, float | int]

_PATIENCE = 5.0  # seconds
_SHOWN = {
    "loss": "total loss",
    "nll": "nll",
    "kl": "kl",
    "images_per_second": "images/s",
    "fg_ari": "FG-ARI",
}


class RunLog:
    """Logs a run into its folder and to stderr.

    Args:
        run: the run's folder.
        start: step that the run begins or resumes with; rows of later steps, logged before it was
            stopped, are dropped.
        steps: of the whole run.
    """

    def __init__(self, run: RunFolder, start: int, steps: int) -> None:
        self._run = run
        unreadable = drop_rows_after(run.metrics, start)
        self._terminal = Terminal(sys.stderr)
        self._metrics = run.metrics.open("a")
        self._hook = threading.excepthook
        threading.excepthook = self._failed_in_thread
        self._board = self._opened_board(start)
        self._bar = progress(total=steps, initial=start, unit="step")
        if unreadable:
            self.say(f"{run.metrics}: {unreadable} of its lines could not be read and are left out")

    def step(self, values: Row) -> None:
        """Move the progress bar on by one step."""
        if not self._bar.disable:
            self._bar.set_postfix_str(_in_short(values), refresh=False)
        self._bar.update()

    def row(self, values: Row) -> None:
        """Log a step; a value that is not finite is written as null."""
        finite = {name: v if np.isfinite(v) else None for name, v in values.items()}
        with naming(self._run.metrics):
            self._metrics.write(json.dumps(finite) + "\n")
            self._metrics.flush()
        step = int(values["step"])
        with naming(self._run.tensorboard):
            for name, value in values.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)
        if self._bar.disable or "fg_ari" in values:
            self.say(f"step {step}/{self._bar.total}: {_in_short(values)}")

    def images(self, paths: list[Path], step: int) -> None:
        """Add pictures of the run's folder to TensorBoard."""
        for path in paths:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            with naming(self._run.tensorboard):
                self._board.add_image(path.stem, pixels, step, dataformats="HWC")
        with naming(self._run.tensorboard):
            self._board.flush()

    def say(self, text: str) -> None:
        """Write a line to stderr without breaking the progress bar."""
        tqdm.write(text, file=self._terminal)

    def close(self) -> None:
        """Flush and close the files."""
        self._bar.close()
        for part, path in (
            (self._metrics, self._run.metrics),
            (self._board, self._run.tensorboard),
        ):
            try:
                part.close()
            except OSError as error:  # a full disk, say; the rest must be closed all the same
                self.say(f"{path}: {error.strerror or error}")
        threading.excepthook = self._hook

    def _opened_board(self, start: int) -> SummaryWriter:
        """TensorBoard's file, which drops the steps from `purge_step` on."""
        others = threading.enumerate()
        try:
            with naming(self._run.tensorboard):
                return SummaryWriter(self._run.tensorboard, purge_step=start + 1)
        except OSError:
            for thread in threading.enumerate():
                if thread not in others:  # it is about to fail, too
                    thread.join(_PATIENCE)
            threading.excepthook = self._hook
            self._metrics.close()
            raise

    def _failed_in_thread(self, failure: threading.ExceptHookArgs) -> None:
        """Print no traceback of TensorBoard's thread: `row` or `close` gets the same error."""
        if not isinstance(failure.exc_value, OSError):
            self._hook(failure)


def drop_rows_after(metrics: Path, step: int) -> int:
    """Keep the rows of `RunFolder.metrics` up to a step.

    Returns:
        The number of lines that are no rows, and are left out too, as is a torn last line, which
        does not count: a killed process leaves it.
    """
    if not metrics.exists():
        return 0
    kept, unreadable = [], 0
    *lines, torn = metrics.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, torn] if torn else lines):
        logged = _step_of(line)
        if logged is None:
            unreadable += number < len(lines)
        elif logged <= step:
            kept.append(line + b"\n")
    write_atomically(metrics, b"".join(kept))
    return unreadable


def _step_of(line: bytes) -> float | None:
    """The step of a row; None if it is none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _in_short(values: Row) -> str:
    return ", ".join(
        f"{text} {values[name]:.4g}" for name, text in _SHOWN.items() if name in values
    )
