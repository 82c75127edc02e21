"""A model that paints blobs by the numbers of its slots, images for it, and pixels of its view."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emorl.data import Batch, ObjectDataset
from emorl.models import Decomposition, ObjectCentricModel, Objective, Stage
from emorl.models.base import Request
from emorl.models.config import ModelConfig
from emorl.nn import standard_normal
from emorl.report.viewer import View, ViewedImage

CHECKER, CELL = (247, 219), 4  # as in viewer.js


@dataclass(kw_only=True)
class BlobsConfig(ModelConfig):
    """Sizes of everything, and how many layers there are."""

    image_size: tuple[int, int] = (16, 20)
    num_slots: int = 3
    slot_dim: int = 8
    layers: int = 3
    grain: float = 0.0


class Blobs(ObjectCentricModel):
    """Slots are colour (0 to 2), place (3, 4) and slopes of the colour (5, 6); 7 does nothing."""

    name: ClassVar[str] = "blobs"
    Config = BlobsConfig
    config: BlobsConfig

    def __init__(self, config: BlobsConfig | None = None) -> None:
        super().__init__(config or BlobsConfig())
        c = self.config
        generator = torch.Generator().manual_seed(3)
        self.slots = torch.nn.Parameter(
            torch.randn(c.num_slots, c.slot_dim, generator=generator) / 2
        )
        self.grain = c.grain * torch.randn(3, *c.image_size, generator=generator)

    def _decompose(self, request: Request) -> Decomposition:
        slots = self.slots + request.target.mean((1, 2, 3))[:, None, None]
        slots = slots + standard_normal(slots, request.generator) / 4
        stages = [
            self.compose(self.decode(slots * share), slots * share)
            for share in torch.linspace(0.3, 1, self.config.layers).tolist()
        ]
        named = tuple(Stage(f"layer {n}", stage) for n, stage in enumerate(stages, 1))
        return replace(stages[-1], stages=named)

    def _objective(self, request: Request) -> Objective:
        raise NotImplementedError

    def decode(self, slots: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        height, width = self.config.image_size
        y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
        part = slots[..., None, None].unbind(2)
        slopes = part[5] * x + part[6] * y
        colours = torch.stack([part[c] * 2 + slopes for c in range(3)], dim=2) + self.grain
        distance = (x - part[3]).square() + (y - part[4]).square()
        return torch.cat([colours, (3 - 8 * distance)[:, :, None]], dim=2)


class Greys(ObjectDataset):
    """Noise around a grey of its own in each image, with two segments."""

    name = "greys"

    def __init__(self, image_size: tuple[int, int] = (16, 20), length: int = 9) -> None:
        self.image_size, self.length = image_size, length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        generator = torch.Generator().manual_seed(5)
        every = torch.randint(0, 60, (len(self), 3, *self.image_size), generator=generator)
        images = every[[*indices]] + 20 * torch.tensor([*indices])[:, None, None, None]
        images = images.clamp(max=255)
        masks = torch.zeros(len(images), 1, *self.image_size, dtype=torch.uint8)
        masks[..., : self.image_size[1] // 2] = 1
        return Batch(images.byte(), masks)


def pixels_at(address: str) -> np.ndarray:
    """The pixels of an embedded PNG."""
    return np.asarray(Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))))


def picture_of(strip: str, number: int, width: int) -> np.ndarray:
    return pixels_at(strip)[:, number * width : (number + 1) * width].astype(np.int64)


def recomposed(view: View, image: ViewedImage, stage: int, slots: list[int]) -> np.ndarray:
    """What the viewer shows of some slots, uint8 [H, W, 3]."""
    strips = image.stages[stage]
    masks = [picture_of(strips.masks, slot, view.width) for slot in slots]
    appearances = [picture_of(strips.appearances, slot, view.width) for slot in slots]
    y, x = np.indices((view.height, view.width)) // CELL
    checker = np.array(CHECKER)[(y + x) % 2]
    total = (255 - sum(masks, np.zeros_like(checker)))[..., None] * checker[..., None]
    total = total + sum(m[..., None] * a for m, a in zip(masks, appearances, strict=True))
    return np.floor(total * np.ones(3) / 255 + 0.5).astype(np.uint8)
