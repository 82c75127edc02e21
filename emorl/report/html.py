"""The report of a run or a trained model, or of two, as one self-contained HTML file."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import emorl
from emorl.paths import local
from emorl.report.absences import Absences, absences, unread
from emorl.report.curves import LINES, curve_data
from emorl.report.tables import differences, evaluation_tables, facts_table
from emorl.report.templates import embedded, render
from emorl.report.viewer import View
from emorl.runs import RunFolder
from emorl.runs.contents import RunContents, read_contents
from emorl.runs.files import write_atomically
from emorl.runs.folder import holds, step_of
from emorl.runs.outputs import PAGE, require_kind
from emorl.runs.trained import is_trained, short_name

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

_Viewed = tuple[dict[str, Any] | None, Exception | None]
"""What the viewer shows of a run, or why it shows nothing."""


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
        ValueError: if a folder is neither a run's nor a model's, a place is needed, or another
            file than a page of emorl's is there.
    """
    if place is None and holds(run_dir) == "model":
        raise ValueError(f"place: needed, since {run_dir} is no run")
    runs = [read_contents(path) for path in (run_dir, other) if path is not None]
    if place is None:
        folder = RunFolder(run_dir)
        place = folder.report if other is None else folder.comparison
    require_kind(local(place), "place", PAGE)
    return write_atomically(local(place), _page(runs, view_of).encode())


def _page(runs: Sequence[RunContents], view_of: Callable[[Path], View] | None) -> str:
    return render(
        Path(__file__).with_name("report.html"),
        runs=_sides(runs, [_view(run, view_of) for run in runs]),
        about=_about(runs),
        facts=facts_table(runs),
        differences=differences([run.config for run in runs]),
        evaluations=evaluation_tables(runs),
        curves=curve_data([run.rows for run in runs]),
        line_colours=LINES,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=_machine(),
        version=emorl.__version__,
    )


def _view(run: RunContents, view_of: Callable[[Path], View] | None) -> _Viewed:
    try:
        return view_of(run.folder.path).as_json() if view_of else None, None
    except (ValueError, OSError, RuntimeError) as error:  # the last: of torch, as for memory
        return None, error


def _sides(runs: Sequence[RunContents], views: Sequence[_Viewed]) -> list[dict[str, Any]]:
    """What the template shows of each run alone."""
    absent = [absences(run, error) for run, (_, error) in zip(runs, views, strict=True)]
    return [
        {
            "name": name,
            "is_run": run.is_run,
            "config_text": run.config_text,
            "lacks": _lacks(run, own, absent),
            "absent": own,
            "view": view,
            "pictures": [_picture(path) for path in run.pictures],
            "picture_step": step_of(run.pictures[0].parent) if run.pictures else None,
        }
        for run, name, own, (view, _) in zip(runs, _names(runs), absent, views, strict=True)
    ]


def _lacks(run: RunContents, own: Absences, absent: Sequence[Absences]) -> list[str]:
    """What a run should have, in sentences; what another one has is told in its section."""
    expected = Absences._fields if run.is_run else ("viewer",)
    parts = [part for part in expected if all(getattr(side, part) for side in absent)]
    return [*unread(run), *(getattr(own, part) for part in parts)]


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


def _names(runs: Sequence[RunContents]) -> list[str]:
    """The trained models' names, and runs' with as many of the folders above as tell them apart."""
    folders = [run.folder.path for run in runs]
    parts = [_parts_of(folder) for folder in folders]
    lengths = range(1, max(map(len, parts)) + 1)
    named = [[str(Path(*own[-length:])) for own in parts] for length in lengths]
    apart = next((names for names in named if len({*names}) == len(names)), named[0])
    return [
        short_name(folder) if is_trained(folder) else name
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
