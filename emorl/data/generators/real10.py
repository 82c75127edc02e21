"""Ten published Tetrominoes records, re-rendered from their factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emorl.data.base import Batch, ObjectDataset, as_indices
from emorl.data.generators.tetromino_shapes import FRAME, render
from emorl.devices import device_there

# Per scene and object: shape id, top row, left column, colour bits (1 red, 2 green, 4 blue).
# The labels of iodine/test_data/tetrominoes_mini.tfrecords in google-deepmind/deepmind-research
# (Apache-2.0), in file order.
RECORDS = (
    ((6, 22, 0, 3), (5, 11, 19, 2), (15, 24, 20, 4)),
    ((9, 12, 3, 3), (14, 17, 20, 6), (5, 0, 19, 3)),
    ((13, 12, 3, 5), (5, 22, 4, 2), (2, 4, 22, 5)),
    ((14, 14, 19, 3), (11, 20, 0, 5), (16, 2, 1, 4)),
    ((18, 3, 2, 6), (17, 15, 4, 1), (13, 15, 19, 4)),
    ((7, 16, 25, 6), (19, 9, 7, 2), (16, 2, 20, 4)),
    ((12, 2, 0, 2), (7, 13, 1, 6), (18, 0, 23, 5)),
    ((9, 14, 25, 1), (16, 1, 8, 2), (16, 18, 8, 5)),
    ((15, 25, 12, 1), (15, 5, 5, 3), (3, 17, 7, 6)),
    ((10, 16, 5, 2), (3, 25, 16, 5), (2, 1, 25, 6)),
)


class TetrominoesReal10(ObjectDataset):
    """The ten labelled records of DeepMind's IODINE test data, bit for bit, on any device.

    They are one split, of no seed.
    """

    name = "tetrominoes-real10"
    image_size = (FRAME, FRAME)

    def __init__(
        self, *, split: str = "train", seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        device = device_there(device)
        records = torch.tensor(RECORDS, device=device)
        entities = torch.cat([torch.zeros_like(records[:, :1]), records], dim=1)
        shape, top, left, color = entities.unbind(-1)
        bits = torch.arange(3, device=device)
        factors = {"x": top, "y": left, "shape": shape, "color": (color[..., None] >> bits) & 1}
        factors["visibility"] = torch.ones_like(shape)
        factors = {name: value.float() for name, value in factors.items()}
        self._all = Batch(*render(factors), factors, torch.arange(len(RECORDS), device=device))

    def __len__(self) -> int:
        return len(RECORDS)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The records at `indices`."""
        indices = as_indices(indices)
        self._require_indices(indices, len(self))
        return self._all.apply(lambda tensor: tensor[list(indices)])
