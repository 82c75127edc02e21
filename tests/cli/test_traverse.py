"""`emorl traverse`: of which slots there are rows."""

from __future__ import annotations

import dataclasses

import torch
from PIL import Image

from emorl.cli import main
from emorl.evaluation import traversals


def test_slots_without_pixels_have_no_rows(tmp_path, monkeypatch):
    """With all pixels given to one slot, there are its rows and nothing else."""
    recompose = traversals.recompose

    def of_one_slot(model, slots):
        own = recompose(model, slots)
        masks = torch.zeros_like(own.masks)
        masks[:, 1] = 1
        return dataclasses.replace(own, masks=masks)

    monkeypatch.setattr(traversals, "recompose", of_one_slot)
    line = ["traverse", "tetrominoes-laptop", "--out", str(tmp_path), "--images", "1"]
    assert main([*line, "--measured", "2", "--values", "2", "--dimensions", "3"]) == 0
    with Image.open(tmp_path / "image-0000.png") as sheet:
        assert sheet.height == 90 + 2 * 14 + 3 * 90  # of pictures with 70 pixels
    with Image.open(tmp_path / "image-0000.gif") as film:
        assert film.height == 90 + 3 * 14 + 90
