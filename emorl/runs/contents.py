"""Contents of a run's folder, as far as they exist and can be read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emorl.runs.files import read_json
from emorl.runs.folder import RunFolder, by_step
from emorl.runs.trained import hint, is_trained
from emorl.runs.yaml_file import read_text

PICTURES = ("decomposition", "stages", "attention", "masks")


@dataclass
class RunContents:
    """The parts of a run for its report.

    Attributes:
        config_text: config.yaml as it is.
        config: the same, parsed.
        rows: of metrics.jsonl, by step; where a step was logged twice, the later row.
        evaluations: file name without ending -> contents of evaluation/*.json.
        pictures: PNG files of the newest step that has any.
        missing: a sentence for each part that does not exist or cannot be read.
    """

    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_contents(run_dir: str | Path) -> RunContents:
    """Read the contents of a run's folder.

    Raises:
        ValueError: if the folder holds neither a configuration nor metrics.
    """
    folder = RunFolder(run_dir)
    if not (folder.config.is_file() or folder.metrics.is_file()):
        raise ValueError(
            f"{folder.path}: expected a run's folder, with {folder.config.name} or "
            f"{folder.metrics.name}, got "
            + ("a folder without them" if folder.path.is_dir() else "no folder")
            + hint(folder.path)
        )
    run = RunContents()
    _read_config(folder.config, run)
    if is_trained(folder.path):
        run.missing.append(
            "Of a trained model that comes along there are the weights and the configuration "
            "alone: no curves, no evaluations, no pictures of its training."
        )
        return run
    _read_rows(folder.metrics, run)
    _read_evaluations(folder.evaluations, run)
    _find_pictures(folder.pictures, run)
    return run


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
    if not rows:
        run.missing.append(f"{path.name} has no rows yet: there are no curves.")


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
        run.missing.append(
            "There is no evaluation: `emorl evaluate` makes one, `emorl report` adds it."
        )


def _find_pictures(folder: Path, run: RunContents) -> None:
    for step in by_step(folder):
        found = [step / f"{name}.png" for name in PICTURES]
        run.pictures = [path for path in found if path.is_file()] or run.pictures
    if not run.pictures:
        run.missing.append("There are no pictures.")
