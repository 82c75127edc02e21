"""Figures of a decomposition: slots, masks, attention, and the stages of inference.

They are `matplotlib.figure.Figure` objects without a window, a display or global state. Images
are uint8 or float in [0, 1], [B, 3, H, W]; true masks are label maps [B, 1, H, W] or [B, H, W]
with 0 for the background. Where they are given, a slot takes the colour of the true segment that
it matches best, and grey if that is the background.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from torch import Tensor

from emorl.report.colours import over_checker, paint
from emorl.report.panels import PanelGrid
from emorl.report.scenes import Scene, array_of, make_scenes

if TYPE_CHECKING:
    from emorl.models.base import Decomposition

ROWS = 8


def decomposition_figure(
    images: Tensor,
    decomposition: Decomposition,
    *,
    true_masks: Tensor | None = None,
    rows: int = ROWS,
) -> Figure:
    """One row per image: input, reconstruction, segmentation, truth if known, then the slots.

    A slot is shown as its appearance where its mask is 1, fading to a pale checker where it is 0;
    its frame has the slot's colour in the segmentation.

    Args:
        images: [B, 3, H, W].
        decomposition: of these images.
        true_masks: label maps, [B, 1, H, W] or [B, H, W].
        rows: show at most this many images, the first ones.

    Raises:
        ValueError: if images, decomposition and true masks differ in size.
    """
    scenes = make_scenes(images, decomposition, true_masks, 0, rows)
    headers = ["input", "reconstruction", "segmentation"]
    if true_masks is not None:
        headers.append("truth")
    first_slot = len(headers)
    headers += _slot_headers(decomposition)
    grid = PanelGrid([scene.scores for scene in scenes], headers, _size(images))
    for row, scene in enumerate(scenes):
        grid.show(row, 0, scene.image)
        grid.show(row, 1, scene.reconstruction)
        grid.show(row, 2, scene.segmentation())
        if scene.truth is not None:
            grid.show(row, 3, scene.true_segmentation())
        _show_slots(grid, row, first_slot, scene)
    return grid.figure()


def masks_figure(
    images: Tensor,
    decomposition: Decomposition,
    *,
    true_masks: Tensor | None = None,
    rows: int = ROWS,
) -> Figure:
    """One row per image: input, then each slot's mask from 0 (black) to 1 (white).

    Args:
        images: [B, 3, H, W].
        decomposition: of these images.
        true_masks: label maps, [B, 1, H, W] or [B, H, W]; only for the colours of the frames.
        rows: show at most this many images, the first ones.

    Raises:
        ValueError: if images, decomposition and true masks differ in size.
    """
    scenes = make_scenes(images, decomposition, true_masks, 0, rows)
    headers = ["input", *_slot_headers(decomposition)]
    grid = PanelGrid(
        [""] * len(scenes), headers, _size(images), colour_map="gray", bar_label="mask"
    )
    for row, scene in enumerate(scenes):
        grid.show(row, 0, scene.image)
        for slot, mask in enumerate(scene.masks):
            grid.show(row, 1 + slot, mask, scene.slot_colours[slot])
    return grid.figure()


def attention_figure(
    images: Tensor,
    decomposition: Decomposition,
    *,
    true_masks: Tensor | None = None,
    index: int = 0,
) -> Figure:
    """The attention of one image: a row per layer, a column per slot, from 0 to 1.

    At every pixel a layer's attention sums to 1 over the slots. The second column gives each
    pixel the colour of the slot that attends to it most.

    Args:
        images: [B, 3, H, W].
        decomposition: of these images, with `attention`.
        true_masks: label maps, [B, 1, H, W] or [B, H, W]; only for the slots' colours.
        index: which image.

    Raises:
        ValueError: if there is no attention or there is no such image, or sizes differ.
    """
    if decomposition.attention is None:
        raise ValueError("attention_figure: expected a decomposition with attention, got None")
    scene = _one_scene(images, decomposition, true_masks, index)
    attention = array_of(decomposition.attention[index])  # [L, K, H, W]
    headers = ["input", "strongest slot", *_slot_headers(decomposition)]
    labels = [f"layer {number + 1}" for number in range(len(attention))]
    grid = PanelGrid(labels, headers, _size(images), colour_map="viridis", bar_label="attention")
    for row, layer in enumerate(attention):
        grid.show(row, 0, scene.image)
        grid.show(row, 1, paint(layer.argmax(0), scene.slot_colours))
        for slot, weights in enumerate(layer):
            grid.show(row, 2 + slot, weights, scene.slot_colours[slot])
    return grid.figure()


def stages_figure(
    images: Tensor,
    decomposition: Decomposition,
    *,
    true_masks: Tensor | None = None,
    index: int = 0,
) -> Figure:
    """The stages of one image's inference: the target, then a row per stage.

    Args:
        images: [B, 3, H, W].
        decomposition: of these images, with `stages`.
        true_masks: label maps, [B, 1, H, W] or [B, H, W].
        index: which image.

    Raises:
        ValueError: if there are no stages or there is no such image, or sizes differ.
    """
    if not decomposition.stages:
        raise ValueError("stages_figure: expected a decomposition with stages, got none")
    final = _one_scene(images, decomposition, true_masks, index)
    stages = [_one_scene(images, s.decomposition, true_masks, index) for s in decomposition.stages]
    named = zip(decomposition.stages, stages, strict=True)
    labels = ["target", *[f"{stage.name}\n{scene.scores}" for stage, scene in named]]
    headers = ["reconstruction", "segmentation", *_slot_headers(decomposition)]
    grid = PanelGrid(labels, headers, _size(images))
    grid.show(0, 0, final.image)
    if final.truth is not None:
        grid.show(0, 1, final.true_segmentation())
    for row, scene in enumerate(stages, start=1):
        scene.slot_colours = final.slot_colours  # a slot keeps its colour from row to row
        grid.show(row, 0, scene.reconstruction)
        grid.show(row, 1, scene.segmentation())
        _show_slots(grid, row, 2, scene)
    return grid.figure()


def _one_scene(
    images: Tensor, decomposition: Decomposition, true_masks: Tensor | None, index: int
) -> Scene:
    if not 0 <= index < len(images):
        raise ValueError(f"expected an index from 0 to {len(images) - 1}, got {index}")
    return make_scenes(images, decomposition, true_masks, index, index + 1)[0]


def _show_slots(grid: PanelGrid, row: int, column: int, scene: Scene) -> None:
    for slot, (component, mask) in enumerate(zip(scene.components, scene.masks, strict=True)):
        pixels = over_checker(component, mask)
        grid.show(row, column + slot, pixels, scene.slot_colours[slot])


def _slot_headers(decomposition: Decomposition) -> list[str]:
    return [f"slot {k}" for k in range(decomposition.masks.shape[1])]


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]
