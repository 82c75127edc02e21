"""Running the suite: each model is trained and measured in turn, within a budget of time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from emorl.bench import records
from emorl.bench.quality.training import CONFIG, DATA, SEED, Start, laptop, planned, stage, start
from emorl.bench.step.cases import MODELS
from emorl.bench.suite import Options, Record
from emorl.bench.tables import Rows
from emorl.bench.workers import Worker
from emorl.terminal import progress
from emorl.training.config import RunConfig

TITLES = {**MODELS, "slot_mlp": f"{MODELS['slot_mlp']} (layer sizes are a stand-in)"}
MOMENTS = 6  # at which a model is measured while it is trained, the last one at the end
# Images to measure; fewer where there is little time.
IMAGES = {"generated": 64}
IMAGES_AT_END = {"generated": 320, "real": 10}
_FEWEST = 8
_MARGIN = 0.96  # share of the training time that the steps are planned for
_FIXED = 1.0  # seconds that going on with a run takes, about
_PRELOAD = "emorl.bench.quality.training"


def outline(options: Options) -> Rows:
    """A row for each model."""
    rows = [["name", "model", "device", "batch", "minutes, about", "seed", "measured"]]
    for model in options.models:
        batch = str(laptop(model, options.device).trainer.batch_size)
        minutes = f"{options.budget / len(options.models) / 60:.3g}"
        row = [model, TITLES[model], options.device, batch, minutes, str(SEED)]
        rows.append([*row, f"before, and {MOMENTS} times"])
    return rows


class Run:
    """A run of the suite, which can be interrupted and keeps what it has.

    Models have equal shares of the time that is left, in which they are trained and measured.

    Args:
        options: of the command line.
        write: is given the record whenever there is more of it.
    """

    def __init__(self, options: Options, write: Callable[[Record], object]) -> None:
        self._options, self._write = options, write
        self._header = {
            **records.header("quality", options),
            "config": CONFIG,
            "data": DATA,
        }
        self._waiting = [*options.models]
        self._entries: list[Record] = []
        self._left_out: list[str] = []
        self._begin = time.perf_counter()

    def __call__(self) -> Record:
        """Run, and return the record."""
        try:
            with (
                tempfile.TemporaryDirectory() as runs,
                progress(total=len(self._waiting) * MOMENTS, leave=False) as self._bar,
            ):
                while self._waiting and self._left > 0:
                    self._train(self._waiting[0], Path(runs), self._left / len(self._waiting))
                    self._waiting.pop(0)
                    self._save(interrupted=True)  # as it would be, were the process killed
        except KeyboardInterrupt:
            return self._save(interrupted=True)
        return self._save(interrupted=False)

    @property
    def _left(self) -> float:
        """Seconds of the budget that are left."""
        return self._options.budget - (time.perf_counter() - self._begin)

    def _train(self, model: str, runs: Path, share: float) -> None:
        """Train a model and measure it, within so many seconds."""
        end = time.perf_counter() + share
        config = laptop(model, self._options.device)
        on_cpu = self._options.device == "cpu"
        self._bar.set_postfix_str(TITLES[model])
        try:
            with Worker(
                dict, self._options.threads, on_cpu, _PRELOAD if on_cpu else None
            ) as worker:
                known: Start = worker.call(partial(start, config, share))
                left = end - time.perf_counter() - MOMENTS * _FIXED
                images = _images(known.image_seconds, left)
                seconds = left - known.image_seconds * sum(sum(each.values()) for each in images)
                steps = int(_MARGIN * seconds / known.step_seconds)
                if steps < len(images):
                    self._left_out.append(f"{TITLES[model]}: no time for {len(images)} steps")
                    return
                points = [{"step": 0, "minutes": 0.0, **known.measured}]
                self._stages(worker, planned(config, steps), runs / model, points, images, seconds)
        except (EOFError, ConnectionError):
            self._left_out.append(f"{TITLES[model]}: its process died")

    def _stages(
        self,
        worker: Worker,
        config: RunConfig,
        folder: Path,
        points: list[Record],
        images: Sequence[dict[str, int]],
        seconds: float,
    ) -> None:
        """Train for so many seconds in all, and measure so many images at each moment."""
        self._entries.append(
            {
                "model": config.model,
                "seed": SEED,
                "slots": config.network.num_slots,
                "batch": config.trainer.batch_size,
                "planned_steps": config.trainer.steps,
                "images": images[0],
                "images_at_end": images[-1],
                "points": points,
            }
        )
        for moment, measured in enumerate(images, start=1):
            minutes = seconds / 60 * moment / len(images) - points[-1]["minutes"]
            is_done = points[-1]["step"] == config.trainer.steps and moment < len(images)
            if minutes > 0 and not is_done:
                point = worker.call(partial(stage, config, folder, minutes, measured))
                if point["step"] == points[-1]["step"]:
                    points.pop()  # measured again, on more images
                points.append(point)
            self._bar.update()
            self._save(interrupted=True)

    def _save(self, interrupted: bool) -> Record:
        """Write the record of all that is there."""
        why = "interrupted" if interrupted else "no time"
        trained = [entry for entry in self._entries if len(entry["points"]) > 1]
        record = {
            **self._header,
            "interrupted": interrupted,
            "failures": [] if trained else ["no model was trained: --budget has no time for it"],
            "left_out": [*self._left_out, *(f"{TITLES[m]}: {why}" for m in self._waiting)],
            "cases": trained,
        }
        self._write(record)
        return record


def _images(image_seconds: float, left: float) -> list[dict[str, int]]:
    """How many images to measure at each moment, so that half the time is left for training."""
    usual = [*[IMAGES] * (MOMENTS - 1), IMAGES_AT_END]
    seconds = image_seconds * sum(sum(each.values()) for each in usual)
    share = min(1.0, max(0.0, left / 2) / seconds)
    return [
        {name: max(min(_FEWEST, n), int(share * n)) for name, n in each.items()} for each in usual
    ]


def run(options: Options, write: Callable[[Record], object]) -> Record:
    """Run the suite; as `Run`."""
    return Run(options, write)()
