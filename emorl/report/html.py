"""A run's report as one self-contained HTML file."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

import emorl
from emorl.report.curves import curves_figure
from emorl.report.pictures import png
from emorl.report.tables import evaluation_table, run_facts
from emorl.report.templates import embedded, render
from emorl.runs import RunFolder
from emorl.runs.contents import RunContents, read_contents
from emorl.runs.files import write_atomically
from emorl.runs.folder import step_of

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
    """Write a run's report, one file without links to others.

    The report names whatever the folder lacks.

    Args:
        run_dir: the run's folder, with its configuration or metrics at least.

    Returns:
        The path of the report, which is written whole or not at all.

    Raises:
        ValueError: if the folder is not a run's.
    """
    run = read_contents(run_dir)
    page = render(
        Path(__file__).with_name("report.html"),
        name=run.name,
        config_text=run.config_text,
        facts=run_facts(run),
        evaluations=[evaluation_table(name, e) for name, e in run.evaluations.items()],
        curves=_curves(run),
        pictures=[_picture(path) for path in run.pictures],
        picture_step=step_of(run.pictures[0].parent) if run.pictures else None,
        missing=run.missing,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=_machine(),
        version=emorl.__version__,
    )
    return write_atomically(RunFolder(run_dir).report, page.encode())


def _curves(run: RunContents) -> str | None:
    if not run.rows:
        return None
    try:
        return embedded(png(curves_figure(run.rows)))
    except ValueError:
        run.missing.append("metrics.jsonl has no values that make a curve.")
        return None


def _picture(path: Path) -> dict[str, str]:
    title, caption = CAPTIONS[path.stem]
    return {"title": title, "caption": caption, "source": embedded(path.read_bytes())}


def _machine() -> str:
    device = f"{os.cpu_count()} processors"
    if torch.cuda.is_available():
        device += f", {torch.cuda.get_device_name()}"
    return f"{platform.system()} {platform.machine()}, {device}, torch {torch.__version__}"
