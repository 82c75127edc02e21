"""The report of a run or a trained model, or of two, as one self-contained HTML file."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

import emorl
from emorl.paths import local, real
from emorl.report.curves import LINES, curve_data
from emorl.report.tables import differences, evaluation_tables, facts_table
from emorl.report.templates import embedded, render
from emorl.report.viewer import View
from emorl.runs import RunFolder
from emorl.runs.contents import RunContents, read_contents
from emorl.runs.files import write_atomically
from emorl.runs.folder import is_lone_model, step_of
from emorl.runs.trained import is_trained, located, short_name

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


def write_report(
    run_dir: str | Path,
    other: str | Path | None = None,
    *,
    place: str | Path | None = None,
    view_of: Callable[[Path], View] | None = None,
) -> Path:
    """Write a run's report, or two runs side by side: one file without links to others.

    The report names whatever a run lacks. Of a trained model it shows what there is.

    Args:
        run_dir: the run's folder, with its configuration or metrics at least; or a checkpoint, a
            model folder or the name of a trained model that comes along, which need a `place`.
        other: one to compare it with.
        place: the file to write; None for `RunFolder.report` or, of two runs,
            `RunFolder.comparison` of the first one.
        view_of: makes what the viewer shows of the run in a folder. Without it there is no viewer.

    Returns:
        The path of the report, which is written whole or not at all.

    Raises:
        ValueError: if a folder is not a run's, or a place is needed.
    """
    if place is None and is_lone_model(run_dir):
        raise ValueError(f"place: needed, since {run_dir} is no run")
    folders = [RunFolder(located(folder)) for folder in (run_dir, other) if folder is not None]
    runs = [read_contents(folder.path) for folder in folders]
    parts = [
        _parts(run, name, view_of and partial(view_of, folder.path))
        for run, name, folder in zip(runs, _names(folders), folders, strict=True)
    ]
    evaluations, curves = evaluation_tables(runs), curve_data([run.rows for run in runs])
    there = {
        "viewer": any(part["view"] for part in parts),
        "evaluation": bool(evaluations),
        "curves": bool(curves),
        "pictures": any(run.pictures for run in runs),
    }
    page = render(
        Path(__file__).with_name("report.html"),
        runs=[{**p, "lacks": _lacks(run, there)} for run, p in zip(runs, parts, strict=True)],
        about=_about(runs),
        facts=facts_table(runs),
        differences=differences([run.config for run in runs]),
        evaluations=evaluations,
        curves=curves,
        line_colours=LINES,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=_machine(),
        version=emorl.__version__,
    )
    own = folders[0].report if other is None else folders[0].comparison
    return write_atomically(own if place is None else local(place), page.encode())


def _parts(run: RunContents, name: str, make_view: Callable[[], View] | None) -> dict[str, Any]:
    """What the template shows of one run alone."""
    view = None
    if make_view is not None:
        try:
            view = make_view().as_json()
        except (ValueError, OSError, RuntimeError) as error:  # the last: of torch, as for memory
            run.absent["viewer"] = f"There is no viewer: {error}."
    if run.rows and not curve_data([run.rows]):
        run.absent["curves"] = "metrics.jsonl has no values that make a curve."
    return {
        "name": name,
        "is_run": run.is_run,
        "config_text": run.config_text,
        "absent": run.absent,
        "view": view,
        "pictures": [_picture(path) for path in run.pictures],
        "picture_step": step_of(run.pictures[0].parent) if run.pictures else None,
    }


def _lacks(run: RunContents, there: dict[str, bool]) -> list[str]:
    """What a run should have, in sentences; what another one has is told in its section."""
    expected = [part for part in run.absent if run.is_run or part == "viewer"]
    return [*run.missing, *(run.absent[part] for part in expected if not there[part])]


def _about(runs: Sequence[RunContents]) -> str:
    """What the page is of, in a sentence."""
    kinds = ["training run" if run.is_run else "trained model" for run in runs]
    what = f"A {' and a '.join(kinds)}"
    if len(runs) > len({*kinds}):
        what = f"Two {kinds[0]}s"
    return (
        f"{what} of emorl, whose models learn, without labels, to take images apart into objects, "
        "one per slot."
    )


def _names(folders: list[RunFolder]) -> list[str]:
    """The trained models' names, and runs' with as many of the folders above as tell them apart."""
    parts = [_parts_of(real(folder.path)) for folder in folders]
    lengths = range(1, max(map(len, parts)) + 1)
    named = [[str(Path(*own[-length:])) for own in parts] for length in lengths]
    apart = next((names for names in named if len({*names}) == len(names)), named[0])
    return [
        short_name(folder.path) if is_trained(folder.path) else name
        for folder, name in zip(folders, apart, strict=True)
    ]


def _parts_of(path: Path) -> tuple[str, ...]:
    """The folders of a path; of a checkpoint, its run's goes with it."""
    kept = 3 if RunFolder(path.parent.parent).checkpoints == path.parent else 1
    return (*path.parts[:-kept], str(Path(*path.parts[-kept:])))


def _picture(path: Path) -> dict[str, str]:
    title, caption = CAPTIONS[path.stem]
    return {"title": title, "caption": caption, "source": embedded(path.read_bytes())}


def _machine() -> str:
    device = f"{os.cpu_count()} processors"
    if torch.cuda.is_available():
        device += f", {torch.cuda.get_device_name()}"
    return f"{platform.system()} {platform.machine()}, {device}, torch {torch.__version__}"
