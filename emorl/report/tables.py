"""Tables of a report: the run's facts and its evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from emorl.report.absences import not_measured
from emorl.report.meanings import is_term, meaning
from emorl.runs.contents import RunContents

# Of an evaluation; the rest is how it was made.
_RESULTS = ("metrics", "notes", "seeds", "representation")

Rows = list[tuple[str, list[str]]]
"""Of a table: what a row is of, and what each run has there."""


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


def facts_table(runs: Sequence[RunContents]) -> Rows:
    """The facts of one or several runs: label, and what each run has there, maybe nothing."""
    facts = [dict(run_facts(run)) for run in runs]
    labels = dict.fromkeys(label for of_run in facts for label in of_run)
    return [(label, [of_run.get(label, "") for of_run in facts]) for label in labels]


def _times(size: Any) -> str | None:
    return " x ".join(map(str, size)) if isinstance(size, list) else None


def _progress(run: RunContents, planned: Any) -> str | None:
    done = run.rows[-1]["step"] if run.rows else run.step
    if planned is None:
        return None if done is None else f"{done}"
    if done is None:
        return f"none logged of {planned}" if run.is_run else f"{planned}"
    return f"{done} of {planned}"


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


def differences(configs: Sequence[Mapping[str, Any]]) -> Rows:
    """What differs between the configurations of several runs: key, and what each run has there."""
    if not all(configs):
        return []
    return _differing([dict(_flat(config)) for config in configs])


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a mapping and of those in it, by dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _differing(values: Sequence[Mapping[str, Any]]) -> Rows:
    """The rows of what is not the same everywhere; "-" where there is nothing of the kind."""
    keys = dict.fromkeys(key for of_run in values for key in of_run)
    rows = [
        (key, [_text(of_run[key]) if key in of_run else "-" for of_run in values]) for key in keys
    ]
    return [(key, texts) for key, texts in rows if len({*texts}) > 1]


def _text(value: Any) -> str:
    """A value in full, as JSON, where 1 is not "1"."""
    return json.dumps(value, ensure_ascii=False)


def evaluation_tables(runs: Sequence[RunContents]) -> list[dict[str, Any]]:
    """The evaluations of one or several runs for the template, one for each name.

    Each has the settings that are the same, those that differ, and the metrics and terms of the
    loss with the numbers of those runs that were measured so: "columns" are their indices. Of
    the others there is a sentence each.
    """
    names = dict.fromkeys(name for run in runs for name in run.evaluations)
    return [_evaluation(name, runs) for name in names]


def _evaluation(name: str, runs: Sequence[RunContents]) -> dict[str, Any]:
    columns = [number for number, run in enumerate(runs) if name in run.evaluations]
    found = [runs[number].evaluations[name] for number in columns]
    settings = [dict(_settings(evaluation)) for evaluation in found]
    differing = _differing(settings)
    keys = dict.fromkeys(key for evaluation in found for key in evaluation["metrics"])
    rows = [_metric(key, [e["metrics"].get(key) for e in found], len(runs) > 1) for key in keys]
    return {
        "name": name,
        "columns": columns,
        "facts": [(k, v) for k, v in settings[0].items() if k not in dict(differing)],
        "differences": differing,
        "absent": {
            number: not_measured(run, name, runs[columns[0]])
            for number, run in enumerate(runs)
            if number not in columns
        },
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


def _metric(name: str, summaries: list[dict[str, Any] | None], several: bool) -> dict[str, Any]:
    """A metric's row: of one run mean, spread and images, of several a cell each."""
    title, text = meaning(name)
    cells = [_cell(summary) if several else _cells(summary) for summary in summaries]
    return {"name": name, "title": title, "meaning": text, "numbers": cells}


def _cells(summary: dict[str, Any] | None) -> list[str]:
    return [_number((summary or {}).get(key)) for key in ("mean", "std", "count")]


def _cell(summary: dict[str, Any] | None) -> list[str]:
    if summary is None:
        return ["-"]
    mean, spread, _ = _cells(summary)
    return [mean if summary.get("std") is None else f"{mean} \u00b1 {spread}"]


def _number(value: Any) -> str:
    if value is None:
        return "not defined"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)
