"""`emorl report`: the report of a run or a trained model, or of two, as one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from emorl.cli.arguments import Parser, local_path
from emorl.runs import RunFolder
from emorl.runs.files import require_place
from emorl.runs.folder import holds, run_of
from emorl.runs.outputs import PAGE, require_kind, require_output

if TYPE_CHECKING:
    from emorl.report.viewer import View

_DESCRIPTION = (
    "Write a run's report.html anew. With a second run: both side by side, as comparison.html in "
    "the first one's folder. A checkpoint, a model folder or a trained model's name will do for a "
    "run, with --out."
)


def run(arguments: list[str]) -> int:
    """Write the report and print its path."""
    parser = Parser("report", _DESCRIPTION)
    add = parser.add_argument
    add(
        "run",
        type=local_path,
        metavar="RUN",
        help="a run, a checkpoint, a model folder or a trained model's name",
    )
    add("other", type=local_path, nargs="?", metavar="RUN2", help="one to compare it with")
    add("--out", type=local_path, metavar="FILE", help="the page (default: in RUN)")
    options = parser.parse(arguments)

    place = _place(options)

    from emorl.report import write_report

    print(write_report(options.run, options.other, place=place, view_of=view_of))
    return 0


def _place(options: argparse.Namespace) -> Path:
    """The file to write, which is free or such a page."""
    if options.out is not None:
        require_output(options.out, "--out", PAGE)
        place: Path = options.out
        return place
    if holds(options.run) == "model":
        raise ValueError(f"--out: needed, since {options.run} is no run")
    folder = RunFolder(options.run)
    place = folder.comparison if options.other else folder.report
    if options.run.is_dir():
        require_place(place, "RUN")
        require_kind(place, "RUN", PAGE)
    return place


def view_of(folder: Path) -> View:
    """What the viewer shows of a run: its newest weights on the images of its pictures.

    Raises:
        ValueError: if it has no weights, or its images cannot be opened.
    """
    import torch

    from emorl.models import find_model
    from emorl.report.viewer import make_view
    from emorl.training.config_file import load_config
    from emorl.training.images import held_out_images, training_images, with_absolute_paths

    run = run_of(folder)
    if run is None:
        raise ValueError("the model's images are not known")
    checkpoint, model = find_model(folder)
    data = with_absolute_paths(load_config(run.config).data)
    # Not by Accelerate: after a training of several processes the others are gone.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = held_out_images(data) or training_images(data)
    return make_view(model.to(device), images, checkpoint.name)
