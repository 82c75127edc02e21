"""Table of the terms of the losses and of diagnostics: title, unit and meaning by name.

A numbered one, such as "kl_layer_2", has its entry under "kl_layer_{}".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Term(NamedTuple):
    """Description of a term or a diagnostic.

    Attributes:
        title: for tables and plots.
        unit: "nats", or "" where there is none.
        meaning: a sentence or two.
        family: terms of one family are plotted together.
        legend: of its curve, where its family has several.
    """

    title: str
    unit: str
    meaning: str
    family: str
    legend: str = ""


# Of every model, after its last step.
SUMMARY = {
    "nll": Term(
        "NLL",
        "nats",
        "Negative log-likelihood of the image after the last step. Lower is better; values compare "
        "only between runs with the same image size, likelihood and sigma. A model without a "
        "likelihood has its squared error here.",
        "nll",
    ),
    "kl": Term(
        "KL",
        "nats",
        "How much the slots tell beyond what their prior expects. Without refinement steps it "
        "is the sum over all layers, with them the last step's alone: do not compare one with the "
        "other. A model whose slots have no prior has 0.",
        "kl",
    ),
}
_AFTER_STEP = "How far the slots are from their prior after this step."
TERMS = {
    **SUMMARY,
    "mask_kl": Term(
        "KL of masks",
        "nats",
        "How far the masks that the slots decode are from those of the attention, over all pixels.",
        "mask_kl",
    ),
    "squared_error": Term(
        "squared error of the loss",
        "",
        "What the model is trained to lower. Slot Attention and Slot MLP: its mean over an image "
        "from -1 to 1, or (variant efficient_morl) its sum over an image from 0 to 1.",
        "squared_error",
    ),
    "nll_0": Term(
        "NLL before refinement",
        "nats",
        "Of the decomposition before the first refinement step.",
        "nll",
        "before refinement",
    ),
    "nll_{}": Term(
        "NLL, refinement step {}",
        "nats",
        "Of the decomposition after this step.",
        "nll",
        "refinement {}",
    ),
    "kl_layer_{}": Term(
        "KL, layer {}",
        "nats",
        "How far this layer's slots are from their prior.",
        "kl",
        "layer {}",
    ),
    "kl_0": Term(
        "KL before refinement",
        "nats",
        "How far the first slots are from their prior.",
        "kl",
        "before refinement",
    ),
    "kl_{}": Term("KL, refinement step {}", "nats", _AFTER_STEP, "kl", "refinement {}"),
    "kl_refinement_{}": Term("KL, refinement step {}", "nats", _AFTER_STEP, "kl", "refinement {}"),
    "update_norm_{}": Term(
        "length of the update, refinement step {}",
        "",
        "Mean over slots of the norm of what this step adds to mean and raw variance.",
        "update_norm",
        "refinement {}",
    ),
}


def numbered(stem: str, values: Mapping[int, Tensor | None]) -> dict[str, Tensor]:
    """Values under their names, detached.

    Args:
        stem: a key of `TERMS`.
        values: by number; None for one that is missing.

    Example:
        >>> [*numbered("kl_layer_{}", {1: torch.zeros(2), 2: torch.ones(2)})]
        ['kl_layer_1', 'kl_layer_2']
    """
    known = {number: value for number, value in values.items() if value is not None}
    return {stem.format(number): value.detach() for number, value in known.items()}


def term(name: str) -> Term | None:
    """The entry of a name such as "nll" or "kl_layer_2"; None if there is none."""
    stem, _, number = name.rpartition("_")
    if name in TERMS or not number.isdecimal() or f"{stem}_{{}}" not in TERMS:
        return TERMS.get(name)
    entry = TERMS[f"{stem}_{{}}"]
    return entry._replace(title=entry.title.format(number), legend=entry.legend.format(number))
