"""All five models at their laptop size on Tetrominoes, each with the same time on one core.

A short trial finds the number of steps that fit into the time, so that the schedules end with it.
A run is measured on held-out generated images and on the bundled real ones. Runs take turns on the
cores, two side by side unless `--cores` says more. Started again, the command repeats no run that
it has finished.

    python -m emorl.bench.models --minutes 10
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median
from typing import Any

from emorl.bench import kernels
from emorl.bench.records import machine, write
from emorl.paths import local
from emorl.runs import RunFolder
from emorl.training.config import RunConfig
from emorl.training.config_file import find_config, load_config

SEEDS = {"efficient_morl": 3, "slot_attention": 3, "slot_mlp": 1, "iodine": 1, "monet": 1}
TITLES = {
    "efficient_morl": "EfficientMORL",
    "slot_attention": "Slot Attention",
    "slot_mlp": "Slot MLP (layer sizes are a stand-in)",
    "iodine": "IODINE",
    "monet": "MONet",
}
DATA = {"generated": "tetrominoes", "real": "tetrominoes-real10"}
COOLDOWN = 0.5  # share of the steps over which the learning rate falls to 0
MARGIN = 0.96  # share of the time that the steps are planned for
FAILED = 0.5  # a run whose FG-ARI is lower has not found the objects


def laptop(model: str) -> RunConfig:
    """A model's laptop configuration."""
    return load_config(find_config("tetrominoes-laptop", model))


def emorl(core: int, *arguments: str) -> None:
    """Run a command on one core, and wait."""
    subprocess.run(
        [sys.executable, "-m", "emorl", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=partial(os.sched_setaffinity, 0, {core}),
    )


def train(core: int, folder: Path, model: str, **trainer: float) -> list[dict[str, float]]:
    """Train the laptop configuration on one core and return the logged rows."""
    settings = {"eval_every": 0, "picture_every": 0, "least_steps": "null", **trainer}
    options = [f"--trainer.{name}={value}" for name, value in settings.items()]
    choice = ["--config", "tetrominoes-laptop", "--model", model]
    shutil.rmtree(folder, ignore_errors=True)  # what an interruption left
    emorl(core, "train", *choice, "--out", str(folder), *options)
    return [json.loads(row) for row in RunFolder(folder).metrics.read_text().splitlines()]


def steps_in(core: int, model: str, folder: Path, minutes: float, batch_size: int) -> int:
    """Number of steps of a model that fit into the time, by a short trial on one core."""
    rows = train(core, folder / f"{model}-trial", model, max_minutes=0.05 * minutes, log_every=5)
    per_second = median(row["images_per_second"] for row in rows[1:]) / batch_size
    return int(MARGIN * 60 * minutes * per_second)


def measure(
    core: int, run: tuple[str, int], folder: Path, steps: dict[str, int], minutes: float
) -> None:
    """Train a model, evaluate it on every data set, and write the result."""
    model, seed = run
    run_folder, planned = folder / f"{model}-{seed}", steps[model]
    cooldown = int(COOLDOWN * planned)
    schedule = {"steps": planned, "cooldown_steps": cooldown, "max_minutes": minutes}
    rows = train(core, run_folder, model, seed=seed, **schedule)
    metrics = {}
    for name, data in DATA.items():
        file = run_folder / f"{name}.json"
        emorl(core, "evaluate", str(run_folder), "--data", data, "--json", str(file))
        metrics[name] = json.loads(file.read_text())["metrics"]
    print(f"{model} {seed}: FG-ARI {metrics['generated']['fg_ari']['mean']:.3f}", flush=True)
    done = {"model": model, "seed": seed, "steps": int(rows[-1]["step"]), "planned_steps": planned}
    result: dict[str, Any] = {**done, "metrics": metrics}
    write(result_of(run, folder), result)  # atomic: if it exists, the run is done


def result_of(run: tuple[str, int], folder: Path) -> Path:
    """The file of a finished run's result."""
    model, seed = run
    return folder / f"{model}-{seed}" / "result.json"


def on_cores(work: Callable[[int, Any], Any], items: Sequence[Any], cores: Sequence[int]) -> list:
    """Results of `work(core, item)` for each item, one at a time on each core."""
    free: SimpleQueue[int] = SimpleQueue()
    for core in cores:
        free.put(core)

    def one(item: Any) -> Any:
        core = free.get()
        try:
            return work(core, item)
        finally:
            free.put(core)

    with ThreadPoolExecutor(len(cores)) as pool:
        return [*pool.map(one, items)]


def describe(runs: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown: means over runs, and the range where there are several."""
    lines = [
        "| Model | Slots | Runs | Failed | Steps | FG-ARI | mIoU, objects | MSE | FG-ARI, real |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(run["model"] for run in runs):
        own = [run for run in runs if run["model"] == model]
        values = {
            (data, name): [run["metrics"][data][name]["mean"] for run in own]
            for data, name in product(DATA, ("fg_ari", "fg_miou", "mse"))
        }
        failed = sum(value < FAILED for value in values["generated", "fg_ari"])
        cells = [
            str(laptop(model).network.num_slots),
            str(len(own)),
            str(failed),
            f"{mean(run['steps'] for run in own):.0f}",
            _cell(values["generated", "fg_ari"], 3),
            _cell(values["generated", "fg_miou"], 3),
            _cell(values["generated", "mse"], 4),
            _cell(values["real", "fg_ari"], 3),
        ]
        lines.append(f"| {TITLES[model]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], digits: int) -> str:
    text = f"{mean(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each run")
    parser.add_argument("--models", nargs="+", choices=SEEDS, default=[*SEEDS])
    parser.add_argument("--cores", type=int, nargs="+", default=[0, 1], help="one run on each")
    parser.add_argument("--runs", type=local, default=Path("runs/models"), help="their folder")
    parser.add_argument("--out", type=local, help="JSON file of the results")
    options = kernels.parse(parser)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    models, folder, minutes = options.models, options.runs, options.minutes

    # Before there are threads: a configuration is read in its own folder, where a process that
    # another thread starts at that moment would begin.
    batch_sizes = {model: laptop(model).trainer.batch_size for model in models}

    def trial(core: int, model: str) -> int:
        return steps_in(core, model, folder, minutes, batch_sizes[model])

    runs = [(model, seed) for model in models for seed in range(SEEDS[model])]
    missing = [run for run in runs if not result_of(run, folder).is_file()]
    tried = [*dict.fromkeys(model for model, _ in missing)]
    steps = dict(zip(tried, on_cores(trial, tried, options.cores), strict=True))
    on_cores(partial(measure, folder=folder, steps=steps, minutes=minutes), missing, options.cores)
    results = [json.loads(result_of(run, folder).read_text()) for run in runs]
    if options.out:
        write(options.out, {"machine": machine(1), "minutes": minutes, "runs": results})
    print(describe(results))


if __name__ == "__main__":
    main()
