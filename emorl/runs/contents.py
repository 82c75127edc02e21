"""Contents of a run's folder, as far as they exist and can be read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emorl.paths import real
from emorl.runs.files import read_json
from emorl.runs.folder import CONFIG, RunFolder, by_step, holds, run_of, step_of
from emorl.runs.trained import hint, located
from emorl.runs.yaml_file import read_text

PICTURES = ("decomposition", "stages", "attention", "masks")


@dataclass
class RunContents:
    """The parts of a run, or of a trained model, for its report.

    Attributes:
        folder: absolute, without links.
        is_run: whether there is, or will be, a log; a model folder or a checkpoint has none.
        step: of a checkpoint.
        config_text: config.yaml, or the model's config.json, as it is; None if there is none.
        config: the same, parsed.
        rows: of metrics.jsonl, by step; where a step was logged twice, the later row.
        torn_rows: how many of its lines cannot be read.
        evaluations: file name without ending -> contents of evaluation/*.json.
        pictures: PNG files of the newest step that has any.
        unread: names of files that cannot be read, as evaluation/test.json.
    """

    folder: RunFolder
    is_run: bool
    step: int | None = None
    config_text: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    torn_rows: int = 0
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read_contents(path: str | Path) -> RunContents:
    """Read the contents of the folder of a run, a checkpoint or a model, or of a name.

    Raises:
        ValueError: if the folder holds neither a configuration nor metrics.
    """
    given = located(path)
    folder, kind = RunFolder(real(given)), holds(given)
    if kind is None:
        raise ValueError(
            f"{given}: expected a run with {folder.config.name} or {folder.metrics.name}, "
            "or a model, got "
            + ("a folder without them" if given.is_dir() else "no folder")
            + hint(given)
        )
    run = RunContents(folder, is_run=kind == "run")
    if run.is_run:
        _read_config(folder.config, run)
    else:
        _read_model(folder.path, run)
    _read_rows(folder.metrics, run)
    _read_evaluations(folder.evaluations, run)
    for step in by_step(folder.pictures):
        found = [step / f"{name}.png" for name in PICTURES]
        run.pictures = [picture for picture in found if picture.is_file()] or run.pictures
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
        return
    run.config_text = _text_of(path)
    try:
        config = read_text(run.config_text)
    except ValueError:
        config = None
    if isinstance(config, dict):
        run.config = config
    else:
        run.unread.append(path.name)


def _read_rows(path: Path, run: RunContents) -> None:
    rows = {}
    for line in _text_of(path).splitlines() if path.is_file() else []:
        try:
            row = _row(line)
            rows[float(row["step"])] = row
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            run.torn_rows += 1
    run.rows = [rows[step] for step in sorted(rows)]


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
            run.unread.append(f"{folder.name}/{path.name}")
        else:
            run.evaluations[path.stem] = evaluation
