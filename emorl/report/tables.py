"""Tables of a report: the run's facts and its evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def facts_table(runs: Sequence[RunContents]) -> list[tuple[str, list[str]]]:
    """The facts of one or several runs: label, and what each run has there, maybe nothing."""
    facts = [dict(run_facts(run)) for run in runs]
    labels = dict.fromkeys(label for of_run in facts for label in of_run)
    return [(label, [of_run.get(label, "") for of_run in facts]) for label in labels]


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


def evaluation_tables(runs: Sequence[RunContents]) -> list[dict[str, Any]]:
    """The evaluations of one or several runs for the template, one for each name.

    Each has all settings and notes of each run, and all metrics and terms of the loss with each
    run's numbers, or without where a run was not measured so.
    """
    names = dict.fromkeys(name for run in runs for name in run.evaluations)
    return [_evaluation(name, [run.evaluations.get(name) for run in runs]) for name in names]


def _evaluation(name: str, evaluations: list[dict[str, Any] | None]) -> dict[str, Any]:
    found = [evaluation or {"metrics": {}} for evaluation in evaluations]
    keys = dict.fromkeys(key for evaluation in found for key in evaluation["metrics"])
    rows = [_metric(key, [e["metrics"].get(key) for e in found]) for key in keys]
    return {
        "name": name,
        "facts": [_settings(evaluation) for evaluation in found],
        "notes": [evaluation.get("notes") or [] for evaluation in found],
        "metrics": [row for row in rows if not is_term(row["name"])],
        "terms": [row for row in rows if is_term(row["name"])],
    }


def _settings(evaluation: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (key.removeprefix("num_").replace("_", " "), value)
        for key, value in evaluation.items()
        if key not in _RESULTS and value is not None
    ]


def _metric(name: str, summaries: list[dict[str, Any] | None]) -> dict[str, Any]:
    title, text = meaning(name)
    numbers = [
        ["", "", ""] if s is None else [_number(s.get(key)) for key in ("mean", "std", "count")]
        for s in summaries
    ]
    return {"name": name, "title": title, "meaning": text, "numbers": numbers}


def _number(value: Any) -> str:
    if value is None:
        return "not defined"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)
