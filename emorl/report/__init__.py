"""Figures of decompositions and training, and the HTML report of a run."""

from emorl.report.figures import (
    attention_figure,
    decomposition_figure,
    masks_figure,
    stages_figure,
)
from emorl.report.pictures import write_pictures

__all__ = [
    "attention_figure",
    "decomposition_figure",
    "masks_figure",
    "stages_figure",
    "write_pictures",
]
