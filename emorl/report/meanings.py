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
    "fg_mbo": (
        "mBO, objects",
        "Overlap of each true object with the slot that overlaps it best, which may be the best of "
        "other objects too. The same number is called mSC.",
    ),
    "mbo": ("mBO", "The same overlap, with the background counted as one more object."),
    "fg_sc": ("covering, objects", "Like mBO, with each object weighted by its pixels."),
    "sc": ("covering", "The same, with the background counted as one more object."),
    "mse": (
        "MSE",
        "Squared difference between image and reconstruction, colours from 0 to 1. 0 is perfect.",
    ),
    "fg_mse": ("MSE, objects", "The same difference on the pixels of the true objects alone."),
    "lpips": (
        "LPIPS",
        "How different image and reconstruction look to a network trained on photographs. 0 is "
        "perfect.",
    ),
    "dci_disentanglement": (
        "DCI, disentanglement",
        "Does each dimension of a slot matter for one property of its object alone? 1 is perfect.",
    ),
    "dci_completeness": (
        "DCI, completeness",
        "Is one dimension enough for each property? 1 is perfect.",
    ),
    "dci_informativeness_{}": (
        "DCI, informativeness: {}",
        "How well trees predict it from the slot, on other objects than they were fitted to: R^2 "
        "of a number, accuracy of a class.",
    ),
    "dci_released_{}": (
        "DCI as released: {}",
        "By the released code's arithmetic, to compare with the published numbers: one regressor "
        "for all properties, and predictions count only where they are exactly equal.",
    ),
    "dci_learned_agreement": (
        "learned matching",
        "Share of objects whose slot is the same by the learned matching as by the masks.",
    ),
    "dci_learned_{}": (
        "DCI, learned matching: {}",
        "With slots matched to objects by what they say of them instead of by masks.",
    ),
    "probe_linear_{}": (
        "linear probe: {}",
        "How well a linear model reads it from the slot: R^2 of a number, accuracy of a class.",
    ),
    "probe_mlp_{}": ("MLP probe: {}", "The same for a network with one hidden layer."),
    "active_dimensions": (
        "active dimensions",
        "Dimensions of a slot that move pixels at least a tenth as far as the most active one.",
    ),
    "dimension_correlation": (
        "correlation of dimensions",
        "Mean size of the correlation between two active dimensions. 0 is none.",
    ),
    "dimension_redundancy": (
        "redundancy of dimensions",
        "How well each active dimension follows from the others, linearly (R^2). 0 is not at all.",
    ),
}
_ATTENTION = "attention_"


def meaning(name: str) -> tuple[str, str]:
    """A metric's title and explanation; the title of an unknown one is its name."""
    if known := term(name):
        return ", ".join(filter(None, (known.title, known.unit))), known.meaning
    if name.startswith(_ATTENTION):
        title, text = meaning(name.removeprefix(_ATTENTION))
        return (
            f"{title}, attention",
            f"{text} Of the last attention instead of the decoder's masks.",
        )
    if name in _METRICS:
        return _METRICS[name]
    for pattern, (title, text) in _METRICS.items():
        start, braces, _ = pattern.partition("{}")
        if braces and name.startswith(start):
            return title.format(name.removeprefix(start).replace("_", " ")), text
    return name, ""


def is_term(name: str) -> bool:
    """Whether a metric is a term of the loss, such as one layer's or one step's."""
    return name not in SUMMARY and term(name) is not None
