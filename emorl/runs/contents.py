"""Contents of a run's folder, as far as they exist and can be read."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emorl.runs.files import read_json
from emorl.runs.folder import CONFIG, RunFolder, by_step, own_run, run_of, step_of
from emorl.runs.trained import hint, short_name
from emorl.runs.yaml_file import read_text

PICTURES = ("decomposition", "stages", "attention", "masks")


@dataclass
class RunContents:
    """The parts of a run, or of a trained model, for its report.

    Attributes:
        target: the folder as commands take it, or a trained model's name.
        is_run: whether there is, or will be, a log; a model folder or a checkpoint has none.
        keeps: whether `emorl evaluate` keeps its results there.
        step: of a checkpoint.
        config_text: config.yaml, or the model's config.json, as it is.
        config: the same, parsed.
        rows: of metrics.jsonl, by step; where a step was logged twice, the later row.
        evaluations: file name without ending -> contents of evaluation/*.json.
        pictures: PNG files of the newest step that has any.
        missing: a sentence for each part that cannot be read.
        absent: "viewer", "evaluation", "curves" or "pictures" -> a sentence, where there is none.
    """

    target: str = ""
    is_run: bool = True
    keeps: bool = True
    step: int | None = None
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def read_contents(run_dir: str | Path) -> RunContents:
    """Read the contents of the folder of a run, a checkpoint or a model.

    Raises:
        ValueError: if the folder holds neither a configuration nor metrics.
    """
    folder = RunFolder(run_dir)
    model = folder.path / CONFIG
    if not any(path.is_file() for path in (folder.config, folder.metrics, model)):
        raise ValueError(
            f"{folder.path}: expected a run with {folder.config.name} or {folder.metrics.name}, "
            "or a model, got "
            + ("a folder without them" if folder.path.is_dir() else "no folder")
            + hint(folder.path)
        )
    run = RunContents(
        target=shlex.quote(short_name(folder.path)),
        is_run=folder.metrics.is_file() or not model.is_file(),
        keeps=own_run(folder.path) is not None,
    )
    if run.is_run:
        _read_config(folder.config, run)
    else:
        _read_model(folder.path, run)
    _read_rows(folder.metrics, run)
    _read_evaluations(folder.evaluations, run)
    _find_pictures(folder.pictures, run)
    return run


def _read_model(folder: Path, run: RunContents) -> None:
    """Read the configuration that a model was trained by or, of a lone one, its network's."""
    if owner := run_of(folder):
        run.step = step_of(folder) if folder in by_step(folder.parent) else None
        _read_config(owner.config, run)
        return
    _read_config(folder / CONFIG, run)
    if run.config:
        run.config = {"model": run.config.pop("model", None), "network": run.config}


def _read_config(path: Path, run: RunContents) -> None:
    if not path.is_file():
        run.missing.append(f"{path.name} is not there: what was trained is not known.")
        return
    run.config_text = _text_of(path)
    try:
        config = read_text(run.config_text)
    except ValueError:
        config = None
    if isinstance(config, dict):
        run.config = config
    else:
        run.missing.append(f"{path.name} cannot be read as YAML.")


def _read_rows(path: Path, run: RunContents) -> None:
    rows, torn = {}, 0
    for line in _text_of(path).splitlines() if path.is_file() else []:
        try:
            row = _row(line)
            rows[float(row["step"])] = row
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            torn += 1
    run.rows = [rows[step] for step in sorted(rows)]
    if torn:
        run.missing.append(f"{path.name}: {torn} of its lines cannot be read.")
    if not rows and run.is_run:
        run.absent["curves"] = f"{path.name} has no rows yet: there are no curves."
    elif not rows:
        run.absent["curves"] = "There is no log of its training."


def _row(line: str) -> dict[str, Any]:
    """A logged row: a finite step, and numbers or nothing; one of several errors if it is none."""
    row: dict[str, Any] = json.loads(line)
    if not all(isinstance(value, int | float | None) for value in row.values()):
        raise TypeError
    for value in row.values():
        float(value or 0)  # whole numbers of JSON have any number of digits
    if not math.isfinite(row["step"]):
        raise ValueError
    return row


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _read_evaluations(folder: Path, run: RunContents) -> None:
    for path in sorted(folder.glob("*.json")):
        try:
            evaluation = read_json(path)
            metrics = [isinstance(m, dict) for m in evaluation["metrics"].values()]
            if not all(metrics) or not isinstance(evaluation.get("notes", []), list):
                raise ValueError
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            run.missing.append(f"{folder.name}/{path.name} is not an evaluation that can be read.")
        else:
            run.evaluations[path.stem] = evaluation
    if not run.evaluations:
        run.absent["evaluation"] = (
            f"There is no evaluation: `emorl evaluate {run.target}` makes one, `emorl report` "
            "adds it."
        )


def _find_pictures(folder: Path, run: RunContents) -> None:
    for step in by_step(folder):
        found = [step / f"{name}.png" for name in PICTURES]
        run.pictures = [path for path in found if path.is_file()] or run.pictures
    if not run.pictures:
        run.absent["pictures"] = "There are no pictures of its training."
