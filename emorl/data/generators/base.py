"""Base of procedural data sets, whose images are computed from their indices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emorl.data.base import UNBOUNDED, Batch, ObjectDataset, as_indices
from emorl.devices import device_there

_AHEAD = 512
# a call waits for the GPU several times; predicted, not measured: it takes as long as for a few
_AHEAD_ON_GPU = 8192


class GeneratedDataset(ObjectDataset):
    """A procedural data set; small batches at a regular stride are generated ahead.

    A call costs much more than an image, so after two requests with the same stride the next
    few are made in one call. What an index gives never depends on it.

    Args:
        device: where images are made.
        most_at_once: how many images a call makes ahead at most, where more would gain nothing.

    Raises:
        ValueError: if there is no such device.

    Attributes:
        split: which scenes these are, with the seed.
        seed: any integer.
    """

    split: str
    seed: int

    def __init__(
        self, device: torch.device | str = "cpu", *, most_at_once: int | None = None
    ) -> None:
        self.device = device_there(device)
        ahead = _AHEAD if self.device.type == "cpu" else _AHEAD_ON_GPU
        self._most_ahead = ahead if most_at_once is None else min(ahead, most_at_once)
        self._ahead: dict[tuple[int, int], Batch] = {}
        self._latest: tuple[int, int, int] = (0, 0, 0)

    def __len__(self) -> int:
        return UNBOUNDED

    def reading(self) -> dict[str, Any]:
        """Also the split and the seed."""
        return {**super().reading(), "split": self.split, "seed": self.seed}

    @abstractmethod
    def generate(self, index: Tensor) -> Batch:
        """The images of `index` (int64 [B] on `self.device`), a pure function of each index."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`, on the data set's device."""
        indices = as_indices(indices)
        self._require_indices(indices, len(self))
        start, count = (indices[0] if indices else 0), len(indices)
        if 0 < count < self._most_ahead and list(indices) == list(range(start, start + count)):
            return self._run(start, count)
        return self.generate(torch.as_tensor(indices, dtype=torch.int64, device=self.device))

    def _run(self, start: int, count: int) -> Batch:
        """Images start .. start + count - 1, from those made ahead if they are there."""
        last_start, last_count, last_stride = self._latest
        stride = start - last_start
        self._latest = (start, count, stride)
        if (start, count) in self._ahead:
            return self._ahead.pop((start, count))
        regular = count == last_count and stride == last_stride and stride > 0
        runs = self._most_ahead // count if regular else 1
        runs = min(runs, (len(self) - start - count) // max(stride, 1) + 1)
        steps = torch.arange(runs, device=self.device) * stride + start
        batch = self.generate((steps[:, None] + torch.arange(count, device=self.device)).ravel())
        self._ahead = {
            (start + run * stride, count): _rows(batch, slice(run * count, (run + 1) * count))
            for run in range(runs)
        }
        return self._ahead.pop((start, count))


def _rows(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch; on the CPU copied, since a worker would send a view's whole storage."""
    return batch.apply(lambda x: x[rows].clone() if x.is_cpu else x[rows])
