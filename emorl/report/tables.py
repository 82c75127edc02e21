"""Tables of a report: the run's facts and its evaluations."""

from __future__ import annotations

import math
from typing import Any

from emorl.report.meanings import is_term, meaning
from emorl.runs.contents import RunContents

# Of an evaluation; the rest is how it was made.
_RESULTS = ("metrics", "notes", "seeds", "representation")


def run_facts(run: RunContents) -> list[tuple[str, str]]:
    """The run's facts for the top of the report."""
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
        ("Training time", _duration(run, trainer.get("batch_size"))),
        ("Speed when last logged", _speed(run)),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _times(size: Any) -> str | None:
    return " x ".join(map(str, size)) if isinstance(size, list) else None


def _progress(run: RunContents, planned: Any) -> str | None:
    if not run.rows:
        return None if planned is None else f"none logged of {planned}"
    done = run.rows[-1]["step"]
    return f"{done}" if planned is None else f"{done} of {planned}"


def _duration(run: RunContents, batch_size: Any) -> str | None:
    """The time that the logged speeds amount to; without measuring and drawing."""
    if not isinstance(batch_size, int) or not run.rows:
        return None
    seconds, before = 0.0, 0.0
    for row in run.rows:
        speed = row.get("images_per_second")
        if not speed:
            return None
        step = float(row["step"])
        seconds += (step - before) * batch_size / speed
        before = step
    if not math.isfinite(seconds):
        return None
    minutes = round(seconds / 60)
    long = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return (long if seconds >= 120 else f"{seconds:.0f} s") + ", the steps alone"


def _speed(run: RunContents) -> str | None:
    speed = run.rows[-1].get("images_per_second") if run.rows else None
    return f"{speed:.4g} images/s" if speed else None


def evaluation_table(name: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation for the template: all its settings, metrics and terms of the loss."""
    rows = [_metric(key, summary) for key, summary in evaluation["metrics"].items()]
    return {
        "name": name,
        "facts": [
            (key.removeprefix("num_").replace("_", " "), value)
            for key, value in evaluation.items()
            if key not in _RESULTS and value is not None
        ],
        "notes": evaluation.get("notes") or [],
        "metrics": [row for row in rows if not is_term(row["name"])],
        "terms": [row for row in rows if is_term(row["name"])],
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
