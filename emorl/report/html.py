"""A run as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import torch

import emorl
from emorl.report.curves import curves_figure
from emorl.report.files import write_atomically
from emorl.report.meanings import is_term, meaning
from emorl.report.pictures import png
from emorl.report.run_folder import RunFolder, read_run_folder

CAPTIONS = {
    "decomposition": (
        "Decompositions",
        "Each row is one image. A slot is drawn as its appearance where its mask is 1, fading to a "
        "checker where it is 0; its frame has its colour in the segmentation. Where the truth is "
        "known, a slot has the colour of the true object that it matches best, grey for the "
        "background.",
    ),
    "stages": (
        "From layer to layer, and from one refinement step to the next",
        "One image; each row is the decomposition after one more stage.",
    ),
    "attention": (
        "Attention",
        "One image; how strongly each slot attends to each pixel. Slots share every pixel: a "
        "row's maps add up to 1.",
    ),
    "masks": ("Masks", "The share of each pixel that each slot explains, from 0 to 1."),
}


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run's folder: one file without any link to another.

    What the folder lacks is named in the report.

    Args:
        run_dir: a folder with config.yaml or metrics.jsonl, and perhaps evaluation/*.json and
            pictures/step-*/*.png.

    Returns:
        The path of the report, which is written whole or not at all.

    Raises:
        ValueError: if the folder is not a run's.
    """
    run_dir = Path(run_dir)
    run = read_run_folder(run_dir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        name=run.name,
        config_text=run.config_text,
        facts=_facts(run),
        evaluations=[_evaluation(name, e) for name, e in run.evaluations.items()],
        curves=_curves(run),
        pictures=[_picture(path) for path in run.pictures],
        picture_step=_step_of(run.pictures),
        missing=run.missing,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=_machine(),
        version=emorl.__version__,
    )
    return write_atomically(run_dir / "report.html", page.encode())


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """What a reader wants to know first."""
    part = {name: run.config.get(name) or {} for name in ("network", "data", "trainer")}
    network, data, trainer = (p if isinstance(p, dict) else {} for p in part.values())
    facts = [
        ("Model", run.config.get("model")),
        ("Images", data.get("train")),
        ("Image size", _times(network.get("image_size"))),
        ("Slots", network.get("num_slots")),
        ("Refinement steps", network.get("refinement_steps")),
        ("Batch size", trainer.get("batch_size")),
        ("Steps", _progress(run, trainer.get("steps"))),
        ("Time in training steps", _duration(run, trainer.get("batch_size"))),
        ("Speed when last logged", _speed(run)),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _times(size: Any) -> str | None:
    return " x ".join(map(str, size)) if isinstance(size, list) else None


def _progress(run: RunFolder, planned: Any) -> str | None:
    if not run.rows:
        return None if planned is None else f"none logged of {planned}"
    done = run.rows[-1]["step"]
    return f"{done}" if planned is None else f"{done} of {planned}"


def _duration(run: RunFolder, batch_size: Any) -> str | None:
    """The time that the logged speeds amount to; without measuring, drawing and loading code."""
    if not isinstance(batch_size, int) or not run.rows:
        return None
    seconds, before = 0.0, 0
    for row in run.rows:
        speed = row.get("images_per_second")
        if not speed:
            return None
        seconds += (row["step"] - before) * batch_size / speed
        before = row["step"]
    minutes = round(seconds / 60)
    long = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return long if seconds >= 120 else f"{seconds:.0f} s"


def _speed(run: RunFolder) -> str | None:
    speed = run.rows[-1].get("images_per_second") if run.rows else None
    return f"{speed:.4g} images/s" if speed else None


def _evaluation(name: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    rows = [_metric(key, summary) for key, summary in evaluation["metrics"].items()]
    return {
        "name": name,
        "facts": [
            (label, evaluation[key])
            for key, label in EVALUATION_FACTS.items()
            if evaluation.get(key) is not None
        ],
        "notes": evaluation.get("notes") or [],
        "metrics": [row for row in rows if not is_term(row["name"])],
        "terms": [row for row in rows if is_term(row["name"])],
    }


EVALUATION_FACTS = {
    "checkpoint": "checkpoint",
    "data": "data",
    "split": "split",
    "images": "images",
    "refinement_steps": "refinement steps",
    "num_slots": "slots",
    "seed": "seed",
}


def _metric(name: str, summary: dict[str, Any]) -> dict[str, str]:
    title, text = meaning(name)
    numbers = {key: _number(summary.get(key)) for key in ("mean", "std", "count")}
    return {"name": name, "title": title, "meaning": text, **numbers}


def _number(value: Any) -> str:
    if value is None:
        return "not defined"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)


def _curves(run: RunFolder) -> str | None:
    if not run.rows:
        return None
    try:
        return _embedded(png(curves_figure(run.rows)))
    except ValueError:
        run.missing.append("metrics.jsonl has no values that make a curve.")
        return None


def _picture(path: Path) -> dict[str, str]:
    title, caption = CAPTIONS[path.stem]
    return {"title": title, "caption": caption, "source": _embedded(path.read_bytes())}


def _step_of(pictures: list[Path]) -> int | None:
    number = pictures[0].parent.name.removeprefix("step-") if pictures else ""
    return int(number) if number.isdigit() else None


def _embedded(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def _machine() -> str:
    device = f"{os.cpu_count()} processors"
    if torch.cuda.is_available():
        device += f", {torch.cuda.get_device_name()}"
    return f"{platform.system()} {platform.machine()}, {device}, torch {torch.__version__}"
