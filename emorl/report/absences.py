"""Sentences about what a run or a trained model lacks, for its report."""

from __future__ import annotations

import inspect
import shlex
from typing import Any, NamedTuple

from emorl.evaluation import evaluate
from emorl.evaluation.per_image import FROM_ATTENTION
from emorl.report.curves import curve_data
from emorl.runs.contents import RunContents
from emorl.runs.trained import short_name

_IMAGES = inspect.signature(evaluate).parameters["images"].default


class Absences(NamedTuple):
    """What a run lacks, part by part of the page: a sentence, or "" where it has the part."""

    viewer: str
    evaluation: str
    curves: str
    pictures: str


def absences(run: RunContents, no_view: Exception | None = None) -> Absences:
    """What a run lacks; `no_view` is why there is no viewer, if there should be one."""
    makes = f": {_command(run)} makes one, `emorl report` adds it" if run.config else ""
    return Absences(
        viewer=f"There is no viewer: {no_view}." if no_view else "",
        evaluation="" if run.evaluations else f"There is no evaluation{makes}.",
        curves="" if curve_data([run.rows]) else _no_curves(run),
        pictures="" if run.pictures else "There are no pictures of its training.",
    )


def unread(run: RunContents) -> list[str]:
    """A sentence for each file that is not there or cannot be read."""
    sentences = [f"{name} cannot be read." for name in run.unread]
    if run.config_text is None:
        name = run.folder.config.name
        sentences.insert(0, f"{name} is not there: what was trained is not known.")
    if run.torn_rows:
        sentences.append(f"{run.folder.metrics.name}: {run.torn_rows} of its lines cannot be read.")
    return sentences


def not_measured(run: RunContents, name: str, measured: RunContents) -> str:
    """That a run lacks an evaluation which another one has.

    Args:
        run: that lacks it.
        name: of the evaluation.
        measured: that has it.
    """
    usual = _is_usual(name, measured) and run.config.get("data") == measured.config["data"]
    lacks = "Not measured so" if run.is_run else "A trained model keeps no evaluations"
    makes = "does, `emorl report` adds it" if run.is_run else "prints one"
    return f"{lacks}: {_command(run)} {makes}." if usual else f"{lacks}."


def _no_curves(run: RunContents) -> str:
    if not run.is_run:
        return "There is no log of its training."
    lacks = "values that make a curve" if run.rows else "rows yet: there are no curves"
    return f"{run.folder.metrics.name} has no {lacks}."


def _command(run: RunContents) -> str:
    return f"`emorl evaluate {shlex.quote(short_name(run.folder.path))}`"


def _is_usual(name: str, run: RunContents) -> bool:
    """Whether a run's evaluation is the one that `emorl evaluate` makes without options.

    Most options are a part of its name, but neither `--images` nor those that add metrics.
    """
    data: Any = run.config.get("data")
    evaluation = run.evaluations[name]
    return (
        isinstance(data, dict)
        and name == evaluation.get("data") == (data.get("held_out") or data.get("train"))
        and evaluation.get("images") == _IMAGES
        and not any(key.startswith((FROM_ATTENTION, "lpips")) for key in evaluation["metrics"])
    )
