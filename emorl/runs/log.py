"""Log of a run: `metrics.jsonl`, TensorBoard, and lines or a progress bar on the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from emorl.runs.files import write_atomically
from emorl.runs.folder import RunFolder

Row = dict[str, float | int]

_SHOWN = {
    "loss": "loss",
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
        drop_rows_after(run.metrics, start)
        self._metrics = run.metrics.open("a")
        # TensorBoard drops the steps from `purge_step` on.
        self._board = SummaryWriter(run.tensorboard, purge_step=start + 1)
        self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, disable=None)

    def step(self, values: Row) -> None:
        """Move the progress bar on by one step."""
        if not self._bar.disable:
            self._bar.set_postfix_str(_in_short(values), refresh=False)
        self._bar.update()

    def row(self, values: Row) -> None:
        """Log a step; a value that is not finite is written as null."""
        finite = {name: v if np.isfinite(v) else None for name, v in values.items()}
        self._metrics.write(json.dumps(finite) + "\n")
        self._metrics.flush()
        step = int(values["step"])
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
            self._board.add_image(path.stem, pixels, step, dataformats="HWC")
        self._board.flush()

    def say(self, text: str) -> None:
        """Write a line to stderr without breaking the progress bar."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flush and close the files."""
        self._bar.close()
        self._metrics.close()
        self._board.close()


def drop_rows_after(metrics: Path, step: int) -> None:
    """Keep the whole rows of `RunFolder.metrics` up to a step; a torn last line goes too."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= step:
            kept.append(line + "\n")
    write_atomically(metrics, "".join(kept).encode())


def _in_short(values: Row) -> str:
    return ", ".join(
        f"{text} {values[name]:.4g}" for name, text in _SHOWN.items() if name in values
    )
