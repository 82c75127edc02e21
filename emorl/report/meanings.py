"""Every metric of an evaluation in plain words."""

from __future__ import annotations

import re

_EXACT = {
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
    "nll": (
        "NLL, nats",
        "Negative log-likelihood of the image after the last step. Lower is better; values compare "
        "only between runs with the same image size, likelihood and sigma. A model without a "
        "likelihood has its squared error here.",
    ),
    "kl": (
        "KL, nats",
        "How much the slots tell beyond what their prior expects. Without refinement steps it "
        "is the sum over all layers, with them the last step's alone: do not compare one with the "
        "other. A model whose slots have no prior has 0.",
    ),
    "mask_kl": (
        "KL of masks, nats",
        "How far the masks that the slots decode are from those of the attention, over all pixels.",
    ),
}
_TERMS = {
    "squared_error": (
        "squared error of the loss",
        "What the model is trained to lower. Slot Attention and Slot MLP: its mean over an image "
        "from -1 to 1, or (variant efficient_morl) its sum over an image from 0 to 1.",
    ),
    "nll_0": ("NLL before refinement", "Of the decomposition before the first refinement step."),
    r"nll_(\d+)": ("NLL, refinement step {}", "Of the decomposition after this step."),
    r"kl_layer_(\d+)": ("KL, layer {}", "How far this layer's slots are from their prior."),
    "kl_0": ("KL before refinement", "How far the first slots are from their prior."),
    r"kl_(?:refinement_)?(\d+)": (
        "KL, refinement step {}",
        "How far the slots are from their prior after this step.",
    ),
}


def meaning(name: str) -> tuple[str, str]:
    """A metric's name for people, and what it tells; unknown ones keep their name."""
    if name in _EXACT:
        return _EXACT[name]
    for pattern, (title, text) in _TERMS.items():
        if match := re.fullmatch(pattern, name):
            return title.format(*match.groups()), text
    return name, ""


def is_term(name: str) -> bool:
    """Whether a metric is a term of the loss, such as one layer's or one step's."""
    return any(re.fullmatch(pattern, name) for pattern in _TERMS)
