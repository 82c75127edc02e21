"""Reading images as training does, and counting them."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from emorl.data import Batch, BatchSampler, ObjectDataset
from emorl.training.loader import step_images

_WARM_UP, _WARM_UP_SECONDS = 3, 0.2  # batches of each worker, while there is so much time


class Way(NamedTuple):
    """How images are read.

    Attributes:
        masks: whether with their label maps.
        workers: processes that prepare batches.
    """

    masks: bool
    workers: int

    def __str__(self) -> str:
        what = "images and masks" if self.masks else "images"
        return f"{what}, {self.workers} worker{'' if self.workers == 1 else 's'}"


def timing(
    dataset: ObjectDataset,
    way: Way,
    batch: int,
    device: str,
    seconds: float,
) -> tuple[int, float]:
    """Read a data set onto the device that trains, as training does, after a short warm-up.

    Workers finish their batches at about the same time, so the same number of each is counted.

    Args:
        dataset: where to read; its copy is read, since what is made ahead once must not help again.
        way: how.
        batch: images at once.
        device: "cpu" or "cuda".
        seconds: for which to read at least.

    Returns:
        Images, and the seconds they took.
    """
    dataset = copy.deepcopy(dataset)
    sampler = BatchSampler(len(dataset), batch, shuffle=True)
    source = _WithMasks(dataset) if way.masks else dataset
    pinned = device == "cuda" and way.workers > 0
    with closing(step_images(source, sampler, way.workers, pin_memory=pinned)) as batches:

        def read() -> int:
            """Read a batch of each worker, wait until all are on the device, count images."""
            images = 0
            for _ in range(max(1, way.workers)):
                images += len(next(batches).to(device, non_blocking=True))
            if device == "cuda":
                torch.cuda.synchronize()
            return images

        begin = time.perf_counter()
        read()
        for _ in range(_WARM_UP - 1):
            if time.perf_counter() - begin < _WARM_UP_SECONDS:
                read()
        images, begin = 0, time.perf_counter()
        while not images or time.perf_counter() - begin < seconds:
            images += read()
        return images, time.perf_counter() - begin


class _WithMasks(ObjectDataset):
    """A data set whose images have the label map as a fourth channel, so that workers send it."""

    def __init__(self, source: ObjectDataset) -> None:
        self.source = source
        self.name, self.image_size = source.name, source.image_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.source.__getitems__(indices)

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """Images and label maps, uint8 [B, 4, H, W]."""
        batch = self.source.__getitems__(indices)
        assert batch.mask is not None  # all sources have them
        return torch.cat([batch.image, batch.mask], dim=1)
