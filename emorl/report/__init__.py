"""Figures of decompositions and training, and the HTML report of a run."""

import emorl.report.backend  # noqa: F401  # before matplotlib
from emorl.report.curves import curves_figure
from emorl.report.figures import (
    attention_figure,
    decomposition_figure,
    masks_figure,
    stages_figure,
)
from emorl.report.html import write_report
from emorl.report.pictures import write_pictures
from emorl.report.sweeps import sweep_figure

__all__ = [
    "attention_figure",
    "curves_figure",
    "decomposition_figure",
    "masks_figure",
    "stages_figure",
    "sweep_figure",
    "write_pictures",
    "write_report",
]
