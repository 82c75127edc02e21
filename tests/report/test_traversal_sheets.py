"""Sheets and films of traversals: what stands where."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emorl.evaluation.traversals import Traversal
from emorl.models import Decomposition
from emorl.report import traversals
from emorl.report.traversals import traversal_frames, traversal_sheet

SIDE, ROW, HEADER, LINE = 64, 84, 84, 14  # a picture with its frame, value and gap below: 84
MARK = (230, 0, 0)
VALUES = torch.tensor([-1.0, 0.0, 1.0])
IMAGE = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)


def decomposition() -> Decomposition:
    """Slot 0 above, slot 2 below, slot 1 nowhere; their codes are 0.1, 5 in slot 2's second."""
    masks = torch.zeros(1, 3, 1, SIDE, SIDE)
    masks[0, 0, 0, :32], masks[0, 2, 0, 32:] = 1, 1
    components = torch.zeros(1, 3, 3, SIDE, SIDE)
    components[:, :, 2] = 1
    slots = torch.full((1, 3, 4), 0.1)
    slots[0, 2, 1] = 5
    return Decomposition((masks * components).sum(1), masks, components, slots)


def moved(*slots: int) -> list[Traversal]:
    images = torch.zeros(3, 3, SIDE, SIDE)
    return [Traversal(slot, dimension, VALUES, images) for slot in slots for dimension in (3, 1)]


def marked(picture: np.ndarray) -> list[tuple[int, int]]:
    """The upper left corners of red frames."""
    red = (picture == MARK).all(axis=2)
    above, left = np.roll(red, 1, axis=0), np.roll(red, 1, axis=1)
    starts = red & ~above & ~left
    return [(int(y), int(x)) for y, x in np.argwhere(starts) if red[y, x : x + 68].all()]


def test_a_sheet_marks_own_values_row_by_row():
    sheet = traversal_sheet(IMAGE, decomposition(), moved(0, 2), torch.rand(4))
    assert sheet.shape[0] == HEADER + 2 * LINE + 4 * ROW
    corners = marked(sheet)
    assert [(y - HEADER - 3 * LINE) / ROW for y, _ in corners] == [0, 1, 2, 3]
    columns = [(x - corners[0][1]) / 70 for _, x in corners]
    assert columns == [0, 0, 0, 1], "0.1 is nearest to 0, and 5 to 1"


def test_blocks_begin_with_the_slot():
    sheet = traversal_sheet(IMAGE, decomposition(), moved(0, 2), torch.rand(4))
    blue = (sheet == (0, 0, 255)).all(axis=2)
    rows = [blue[HEADER + 2 * LINE + ROW * row :][:ROW].sum() for row in range(4)]
    assert rows == [32 * SIDE, 0, 32 * SIDE, 0]


def test_left_out_slots_are_counted(monkeypatch):
    lines = []
    monkeypatch.setattr(traversals, "stacked", lambda parts: lines.extend(parts[1:-1]))
    for slots in ((0, 2), (0, 1, 2)):
        traversal_sheet(IMAGE, decomposition(), moved(*slots), torch.rand(4))
    mark = "red frame: nearest to the slot's own value"
    assert lines == [mark, "left out: 1 of 3 slots, which cover no pixel", mark]


def test_a_film_marks_a_slot_when_it_passes_its_own_value():
    frames = traversal_frames(IMAGE, decomposition(), moved(0, 2))
    assert len({frame.shape for frame in frames}) == 1
    assert frames[0].shape[0] == HEADER + 3 * LINE + 2 * ROW
    assert [len(marked(frame)) for frame in frames] == [0, 3, 1]


@pytest.mark.parametrize("values", [2, 9])
def test_any_number_of_values_fits(values):
    images = torch.zeros(values, 3, 35, 35)
    one = [Traversal(0, 0, torch.linspace(-1e-9, 1e9, values), images)]
    assert len(traversal_frames(IMAGE, decomposition(), one)) == values
    sheet = traversal_sheet(IMAGE, decomposition(), one, torch.ones(1))
    assert sheet.shape[1] >= (1 + values) * 70
