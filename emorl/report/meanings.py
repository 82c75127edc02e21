"""Titles and explanations of an evaluation's metrics."""

from __future__ import annotations

from emorl.models.terms import SUMMARY, term

_METRICS = {
    "fg_ari": (
        "FG-ARI",
        "Do pixels of one object share a slot, and pixels of two objects not? 1 is perfect, 0 is "
        "chance. Pixels of the true background are left out, so a slot may spill over into it.",
    ),
    "ari": ("ARI", "Like FG-ARI, with the true background counted as one more object."),
    "fg_miou": (
        "mean IoU, objects",
        "Overlap (intersection over union) of each true object with the slot matched to it, "
        "averaged over objects. 1 is perfect; spilling into the background costs.",
    ),
    "miou": ("mean IoU", "The same overlap, with the background counted as one more object."),
    "mse": (
        "MSE",
        "Squared difference between image and reconstruction, colours from 0 to 1. 0 is perfect.",
    ),
}


def meaning(name: str) -> tuple[str, str]:
    """A metric's title and explanation; the title of an unknown one is its name."""
    if known := term(name):
        return ", ".join(filter(None, (known.title, known.unit))), known.meaning
    return _METRICS.get(name, (name, ""))


def is_term(name: str) -> bool:
    """Whether a metric is a term of the loss, such as one layer's or one step's."""
    return name not in SUMMARY and term(name) is not None
