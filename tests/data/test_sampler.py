from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from emorl.data import UNBOUNDED, Batch, BatchSampler, collate, open_dataset


def take(sampler: BatchSampler, steps: int) -> list[list[int]]:
    return list(itertools.islice(sampler, steps))


@pytest.mark.parametrize("batch", [1, 3, 5, 10, 25], ids=lambda b: f"B{b}")
def test_every_epoch_is_a_permutation(batch: int) -> None:
    indices = list(itertools.chain(*take(BatchSampler(10, batch, seed=1), 60)))
    epochs = [indices[start : start + 10] for start in range(0, len(indices) - 9, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("start", [0, 1, 7, 40])
def test_a_resumed_run_sees_the_same_batches(start: int) -> None:
    whole = take(BatchSampler(17, 4, seed=9), 60)
    assert take(BatchSampler(17, 4, seed=9, start_step=start), 60 - start) == whole[start:]


def test_a_sampler_can_be_read_again() -> None:
    sampler = BatchSampler(17, 4, seed=9, start_step=3)
    assert take(sampler, 20) == take(sampler, 20)
    assert sampler.batch(3) == take(sampler, 1)[0]


@pytest.mark.parametrize("length", [23, UNBOUNDED], ids=["finite", "generator"])
def test_ranks_share_the_batches_of_one_process(length: int) -> None:
    ranks = [take(BatchSampler(length, 2, seed=5, rank=r, world_size=3), 30) for r in range(3)]
    together = [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]
    assert together == take(BatchSampler(length, 6, seed=5), 30)


def test_seeds_give_other_orders() -> None:
    assert take(BatchSampler(100, 10, seed=0), 10) != take(BatchSampler(100, 10, seed=1), 10)


def test_first_places_are_uniform_over_seeds() -> None:
    first = torch.tensor([BatchSampler(6, 1, seed=seed).batch(0)[0] for seed in range(3000)])
    assert (torch.bincount(first, minlength=6) - 500).abs().max() < 5 * 500**0.5


def test_a_generator_is_read_in_order() -> None:
    assert take(BatchSampler(UNBOUNDED, 3, seed=1, start_step=4), 2) == [[12, 13, 14], [15, 16, 17]]


def test_order_is_kept_without_shuffling() -> None:
    assert take(BatchSampler(5, 3, shuffle=False), 3) == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0, "batch_size": 1}, "length and batch_size >= 1"),
        ({"length": 1, "batch_size": 0}, "length and batch_size >= 1"),
        ({"length": 1, "batch_size": 1, "start_step": -1}, "start_step >= 0"),
        ({"length": 1, "batch_size": 1, "rank": 2, "world_size": 2}, "0 <= rank < 2, got 2"),
    ],
    ids=["length", "batch_size", "start_step", "rank"],
)
def test_wrong_arguments_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchSampler(**arguments)


@pytest.mark.parametrize("workers", [0, 2], ids=lambda n: f"{n}-workers")
def test_a_loader_gives_the_sampled_batches(workers: int) -> None:
    dataset = open_dataset("tetrominoes", seed=2)
    sampler = BatchSampler(len(dataset), 8, start_step=5)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
    )
    for step, batch in enumerate(itertools.islice(loader, 9), start=5):
        assert isinstance(batch, Batch)
        assert batch.index.tolist() == list(range(8 * step, 8 * step + 8))
        assert torch.equal(batch.image, dataset.__getitems__(batch.index.tolist()).image)


def test_collate_stacks_samples_into_the_same_batch() -> None:
    dataset = open_dataset("tetrominoes")
    stacked = collate([dataset[index] for index in (4, 2)])
    batch = dataset.__getitems__([4, 2])
    assert torch.equal(stacked.image, batch.image)
    assert stacked.mask is not None
    assert torch.equal(stacked.mask, dataset.__getitems__([4, 2]).mask)
    assert stacked.index.tolist() == [4, 2]
    assert all(torch.equal(stacked.factors[name], batch.factors[name]) for name in batch.factors)


def test_collate_keeps_unknown_masks_unknown() -> None:
    sample = {"image": torch.zeros(3, 2, 2), "factors": {}, "index": torch.tensor(0)}
    assert collate([sample, sample]).mask is None


def test_a_batch_moves_as_a_whole() -> None:
    batch = open_dataset("tetrominoes").__getitems__([0, 1]).to("meta")
    assert batch.mask is not None
    tensors = [batch.image, batch.mask, batch.index, *batch.factors.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len(batch) == 2
