"""The pictures of a decomposition as files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from matplotlib.figure import Figure
from torch import Tensor

from emorl.paths import local
from emorl.report.backend import own_settings
from emorl.report.figures import (
    attention_figure,
    decomposition_figure,
    masks_figure,
    stages_figure,
)
from emorl.runs.files import write_atomically
from emorl.runs.outputs import MADE_BY

if TYPE_CHECKING:
    from emorl.models.base import Decomposition


def write_pictures(
    folder: str | Path,
    images: Tensor,
    decomposition: Decomposition,
    true_masks: Tensor | None = None,
) -> list[Path]:
    """Write decomposition.png and masks.png, and attention.png and stages.png if there is data.

    Attention and stages are those of the first image.

    Args:
        folder: made if needed; each picture is written whole or not at all.
        images: uint8 or float in [0, 1], [B, 3, H, W]; the first 8 are shown.
        decomposition: of these images.
        true_masks: label maps, [B, 1, H, W] or [B, H, W].

    Returns:
        The paths of the pictures.

    Raises:
        ValueError: if images, decomposition and true masks differ in size.
    """
    figures = {
        "decomposition": decomposition_figure(images, decomposition, true_masks=true_masks),
        "masks": masks_figure(images, decomposition, true_masks=true_masks),
    }
    if decomposition.attention is not None:
        figures["attention"] = attention_figure(images, decomposition, true_masks=true_masks)
    if decomposition.stages:
        figures["stages"] = stages_figure(images, decomposition, true_masks=true_masks)
    return [
        write_atomically(local(folder) / f"{name}.png", png(figure))
        for name, figure in figures.items()
    ]


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    return picture(figure, "png")


@own_settings()
def picture(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """The figure as the bytes of a file."""
    buffer = BytesIO()
    program = {"png": "Software", "svg": "Creator"}[kind]
    figure.savefig(buffer, format=kind, metadata={program: MADE_BY})
    return buffer.getvalue()
