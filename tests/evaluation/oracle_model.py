"""A model that knows the truth: slots are factors, masks are the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from training_fakes import FakeConfig

from emorl.data import Batch, ObjectDataset
from emorl.models import Decomposition, ObjectCentricModel, Objective
from emorl.models.base import Request

SIDE, SLOTS = 16, 3
TABLE = torch.rand(512, 2, 2, generator=torch.Generator().manual_seed(0))
KINDS = torch.randint(0, 3, (512, 2), generator=torch.Generator().manual_seed(1))


class Scenes(ObjectDataset):
    """Two squares of 64 pixels on black: red says "x", green "y", blue the "shape" of three.

    Every fifth image lacks the second object, which is too small in every seventh.
    """

    name = "scenes"
    image_size = (SIDE, SIDE)

    def __init__(self, length: int = 100) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = torch.tensor(list(indices))
        mask = torch.zeros(len(rows), 1, SIDE, SIDE, dtype=torch.uint8)
        mask[:, :, :8, :8], mask[:, :, 8:, 8:] = 1, 2
        mask[rows % 5 == 0, :, 8:] = 0
        mask[rows % 7 == 0, :, 8:, 9:] = 0
        colours = torch.cat([TABLE[rows], KINDS[rows, :, None] / 2], dim=2)  # [B, 2, 3]
        nothing = torch.zeros(len(rows), 1, 3)
        palette = torch.cat([nothing, colours], dim=1)
        image = palette[torch.arange(len(rows))[:, None, None], mask[:, 0].long()]
        factors = {
            "x": palette[:, :, 0],
            "y": palette[:, :, 1],
            "shape": 2 * palette[:, :, 2],
            "visibility": torch.ones(len(rows), 3),
        }
        pixels = (255 * image.permute(0, 3, 1, 2)).round().to(torch.uint8)
        return Batch(pixels, mask, factors, rows)


class Oracle(ObjectCentricModel):
    """Finds each square's colour; its slots are in an order of the image's own.

    A slot is red, green, blue, which square it is, a dimension that does nothing, and one that
    repeats red without being decoded.
    """

    name: ClassVar[str] = "oracle"
    Config = FakeConfig

    def __init__(self) -> None:
        super().__init__(FakeConfig(image_size=(SIDE, SIDE), num_slots=SLOTS))
        self.unused = nn.Parameter(torch.zeros(1))

    def _objective(self, request: Request) -> Objective:
        raise NotImplementedError

    def _decompose(self, request: Request) -> Decomposition:
        first, second = request.target[:, :, 0, 0], request.target[:, :, 15, 15]
        slots = torch.zeros(len(first), SLOTS, 6)
        slots[:, 1, :3], slots[:, 2, :3] = first, second
        slots[:, :, 3] = torch.arange(3.0)
        slots[:, :, 5] = slots[:, :, 0]
        turns = (1000 * first[:, 0]).long() % SLOTS
        order = (torch.arange(SLOTS) + turns[:, None]) % SLOTS
        slots = slots.gather(1, order[:, :, None].expand_as(slots))
        return self.compose(self.decode(slots), slots)

    def decode(self, slots: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        place = slots[:, :, 3, None, None]
        where = torch.zeros(SIDE, SIDE)
        where[:8, :8], where[8:, 8:] = 1, 2
        logits = -20 * (where - place).abs()
        colours = slots[:, :, :3, None, None].clamp(1e-3, 1 - 1e-3).logit()
        return torch.cat([colours.expand(-1, -1, -1, SIDE, SIDE), logits[:, :, None]], dim=2)
