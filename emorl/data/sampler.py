"""Which images make up which batch, as a pure function of the step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from emorl.data import random
from emorl.data.base import UNBOUNDED
from emorl.memory import require_memory

_ORDERED = 24  # bytes for each image while a permutation is drawn: key, sorted key, index


class BatchSampler(Sampler[list[int]]):
    """Endless batches of indices for `DataLoader(batch_sampler=...)`.

    Step s of all ranks together takes the positions s * batch_size * world_size onwards. Each run
    of `length` positions is an epoch with its own permutation, so a batch may span two epochs and
    every image comes exactly once in each. A run that starts at step s continues with the very
    batches that an uninterrupted run would see.

    Args:
        length: number of images; from `UNBOUNDED` on (a generator) indices are consecutive.
        batch_size: images in a batch of one rank.
        seed: of the permutations.
        start_step: the first step to give.
        rank: of this process, 0 to world_size - 1.
        world_size: number of processes that share each step.
        shuffle: False for the data set's own order in every epoch.

    Raises:
        ValueError: if a number is out of its range, or an order takes more than all memory.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        if length < 1 or batch_size < 1 or start_step < 0:
            raise ValueError(
                "BatchSampler: expected length and batch_size >= 1 and start_step >= 0, "
                f"got {length}, {batch_size} and {start_step}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"BatchSampler: expected 0 <= rank < {world_size}, got {rank}")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start_step, self.rank, self.world_size = start_step, rank, world_size
        self.shuffle = shuffle and length < UNBOUNDED
        if self.shuffle:
            require_memory(length * _ORDERED, f"BatchSampler: the order of {length} images")
        self._orders: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from `start_step` on, without end."""
        return (self.batch(step) for step in itertools.count(self.start_step))

    def batch(self, step: int) -> list[int]:
        """The indices of this rank's batch at `step`."""
        first = (step * self.world_size + self.rank) * self.batch_size
        positions = range(first, first + self.batch_size)
        if not self.shuffle:
            return [position % self.length for position in positions]
        return [int(self._order(p // self.length)[p % self.length]) for p in positions]

    def _order(self, epoch: int) -> Tensor:
        """The permutation of an epoch, int64 [length]; sorted by random states, hence portable."""
        if epoch not in self._orders:
            state = random.stream(torch.tensor(0), split="train", seed=self.seed)
            keys = random.fold(random.fold(state, epoch), torch.arange(self.length))
            recent = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders = {**recent, epoch: keys.argsort(stable=True)}
        return self._orders[epoch]
