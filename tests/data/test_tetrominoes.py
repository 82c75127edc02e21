from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from emorl.data import Batch, Tetrominoes, open_dataset, render
from emorl.data import random as counters
from emorl.data.generators.tetromino_shapes import SHAPES


@pytest.fixture(scope="module")
def scenes() -> Batch:
    return Tetrominoes(seed=3).generate(torch.arange(4000))


def same(first: Batch, second: Batch) -> bool:
    pairs = [
        (first.image, second.image),
        (first.mask, second.mask),
        (first.index, second.index),
        *((first.factors[name], second.factors[name]) for name in first.factors),
    ]
    return first.factors.keys() == second.factors.keys() and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
    )


def published(fixtures_dir: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    records = np.load(fixtures_dir / "data" / "tetrominoes_mini_train10.npz")
    factors = {
        name: torch.from_numpy(records[name]) for name in ("x", "y", "shape", "color", "visibility")
    }
    masks = records["mask"]
    labels = sum((masks[:, e] == 255) * np.uint8(e) for e in range(masks.shape[1]))
    image = torch.from_numpy(records["image"]).permute(0, 3, 1, 2)
    return factors, image, torch.from_numpy(labels)[:, None]


def test_published_records_are_rendered_bit_for_bit(fixtures_dir: Path) -> None:
    factors, image, labels = published(fixtures_dir)
    rendered, mask = render(factors)
    assert rendered.dtype == mask.dtype == torch.uint8
    assert torch.equal(rendered, image)
    assert torch.equal(mask, labels)


def test_bundled_records_are_the_published_ones(fixtures_dir: Path) -> None:
    factors, image, labels = published(fixtures_dir)
    batch = open_dataset("tetrominoes-real10").__getitems__(list(range(10)))
    assert same(batch, Batch(image, labels, factors, torch.arange(10)))


def test_bundled_records_end_at_ten() -> None:
    dataset = open_dataset("tetrominoes-real10")
    assert len(dataset) == 10
    with pytest.raises(IndexError, match=r"tetrominoes-real10: index 10 outside of 0\.\.9"):
        dataset[10]


def test_shapes_are_the_19_fixed_tetrominoes() -> None:
    cells = set(SHAPES.values())
    assert len(cells) == 19
    assert all(text.count("#") == 4 for text in cells)
    for text in cells:  # closed under quarter turns
        rows = [list(row) for row in text.split("/")]
        turned = zip(*rows[::-1], strict=True)
        assert "/".join("".join(row) for row in turned) in cells


def mix(bits: int) -> int:
    """SplitMix64's finaliser on Python integers, from the paper."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % 2**64
    return bits ^ (bits >> 31)


def fold(state: int, counter: int) -> int:
    return mix((state + counter * 0x9E3779B97F4A7C15) % 2**64)


def scene(seed: int, split: str, index: int) -> tuple[int, list[list[int]]]:
    """The first attempt without overlap, pixel by pixel: its number and [shape, x, y, colour]."""
    counter = index + (["train", "val", "test"].index(split) << 32)
    state = fold(mix(seed % 2**64), counter)
    for attempt in range(10_000):
        draw = [fold(state, attempt * 12 + n) >> 33 for n in range(12)]
        objects, pixels = [], set()
        for pick, colour, row, column in (draw[n::3] for n in range(3)):
            shape = (pick * 19 >> 31) + 1
            rows = SHAPES[shape].split("/")
            top = row * (36 - 5 * len(rows)) >> 31
            left = column * (36 - 5 * len(rows[0])) >> 31
            objects.append([shape, top, left, (colour * 6 >> 31) + 1])
            pixels |= {
                (top + r, left + c)
                for r in range(5 * len(rows))
                for c in range(5 * len(rows[0]))
                if rows[r // 5][c // 5] == "#"
            }
        if len(pixels) == 300:
            return attempt, objects
    raise AssertionError("no scene")


@pytest.mark.parametrize(
    ("seed", "split"), [(0, "train"), (0, "test"), (-7, "val"), (2**63 + 5, "train")]
)
def test_scenes_are_those_of_a_plain_loop(seed: int, split: str) -> None:
    index = [0, 1, 2, 77, 2**31 - 1]
    factors = Tetrominoes(seed=seed, split=split).generate(torch.tensor(index)).factors
    for row, i in enumerate(index):
        expected = torch.tensor(scene(seed, split, i)[1])
        colour = (factors["color"][row, 1:] * torch.tensor([1, 2, 4])).sum(-1)
        drawn = [factors["shape"][row, 1:], factors["x"][row, 1:], factors["y"][row, 1:], colour]
        assert torch.stack(drawn, dim=-1).tolist() == expected.tolist()


def test_a_late_attempt_is_found() -> None:
    attempts = {i: scene(0, "train", i)[0] for i in range(400)}
    late = max(attempts, key=lambda i: attempts[i])
    assert attempts[late] > 16  # beyond two rounds of proposals
    expected = scene(0, "train", late)[1]
    factors = Tetrominoes().generate(torch.tensor([late])).factors
    assert factors["shape"][0, 1:].tolist() == [shape for shape, *_ in expected]


def test_a_scene_does_not_depend_on_its_batch(scenes: Batch) -> None:
    order = torch.randperm(4000)[:300]
    shuffled = Tetrominoes(seed=3).generate(order)
    assert same(shuffled, scenes.apply(lambda tensor: tensor[order]))
    alone = Tetrominoes(seed=3)[1234]
    assert torch.equal(alone["image"], scenes.image[1234])


@pytest.mark.parametrize(("batch", "stride"), [(8, 8), (8, 24), (5, 5), (512, 512), (600, 600)])
def test_batches_made_ahead_are_the_same(scenes: Batch, batch: int, stride: int) -> None:
    dataset = Tetrominoes(seed=3)
    for start in range(0, min(40 * stride, 4000 - batch), stride):
        made = dataset.__getitems__(list(range(start, start + batch)))
        assert same(made, scenes.apply(lambda tensor, s=start: tensor[s : s + batch]))
        assert made.image.untyped_storage().nbytes() == made.image.numel()


def test_irregular_requests_are_the_same(scenes: Batch) -> None:
    dataset = Tetrominoes(seed=3)
    for start, count in [
        (0, 8),
        (8, 8),
        (16, 8),
        (24, 4),
        (28, 4),
        (0, 8),
        (8, 8),
        (16, 8),
        (8, 8),
    ]:
        made = dataset.__getitems__(range(start, start + count))
        assert made.index.tolist() == list(range(start, start + count))
        assert torch.equal(made.image, scenes.image[start : start + count])


def test_the_last_indices_can_be_made() -> None:
    dataset = Tetrominoes()
    for start in range(2**31 - 40, 2**31, 8):
        assert dataset.__getitems__(range(start, start + 8)).index[0] == start
    with pytest.raises(IndexError, match="index 2147483648 outside"):
        dataset[2**31]


def test_scenes_obey_the_rules(scenes: Batch) -> None:
    assert scenes.mask is not None
    labels = scenes.mask.flatten(1)
    for label, pixels in enumerate([925, 100, 100, 100]):
        assert ((labels == label).sum(1) == pixels).all()
    assert (scenes.image.amax(dim=1, keepdim=True)[scenes.mask == 0] == 0).all()
    assert (scenes.image.amax(dim=1, keepdim=True)[scenes.mask > 0] >= 63).all()
    colours = scenes.factors["color"][:, 1:].sum(-1)
    assert ((colours == 1) | (colours == 2)).all()
    image, mask = render(scenes.factors)
    assert torch.equal(image, scenes.image)
    assert torch.equal(mask, scenes.mask)


def test_x_and_y_are_the_corner_of_the_bounding_box(scenes: Batch) -> None:
    assert scenes.mask is not None
    for row in range(50):
        for entity in (1, 2, 3):
            rows, columns = (scenes.mask[row, 0] == entity).nonzero().unbind(1)
            assert scenes.factors["x"][row, entity] == rows.min()
            assert scenes.factors["y"][row, entity] == columns.min()


def test_proposals_are_uniform_and_one_in_seven_is_accepted() -> None:
    dataset, count = Tetrominoes(seed=5), 200_000
    state = counters.stream(torch.arange(count), split="train", seed=5)
    shape, colour, top, left = dataset.propose(state, torch.zeros(1, dtype=torch.int64))
    for values, kinds in ((shape - 1, 19), (colour - 1, 6)):
        for column in range(3):
            seen = torch.bincount(values[:, column], minlength=kinds).double()
            chi_squared = ((seen - count / kinds) ** 2 / (count / kinds)).sum()
            assert len(seen) == kinds
            assert chi_squared < kinds - 1 + 5 * (2 * (kinds - 1)) ** 0.5
    square = shape == 19
    for corner in (top, left):
        places = torch.bincount(corner[square], minlength=26).double() / square.sum()
        assert len(places) == 26
        torch.testing.assert_close(places, torch.full_like(places, 1 / 26), atol=5e-3, rtol=0)
    accepted = 1 - dataset._tables.overlap(shape, top, left).double().mean()
    assert accepted == pytest.approx(0.144, abs=0.004)


def test_draws_of_a_scene_are_independent() -> None:
    state = counters.stream(torch.arange(100_000), split="train", seed=0)
    bits = counters.fold(state[:, None], torch.arange(24))
    draws = counters.below(bits, 2**31 - 1).double().T
    correlation = torch.corrcoef(draws) - torch.eye(24)
    assert correlation.abs().max() < 5 / 100_000**0.5


def test_splits_and_seeds_differ() -> None:
    index = torch.arange(1000)
    splits = [Tetrominoes(split=name).generate(index).image for name in ("train", "val", "test")]
    other = Tetrominoes(seed=1).generate(index).image
    for first in range(3):
        for second in [*splits[first + 1 :], other]:
            assert (splits[first] != second).flatten(1).any(1).all()


def test_streams_of_a_seed_share_no_state() -> None:
    index = torch.cat([torch.arange(50_000), 2**31 - 1 - torch.arange(50_000)])
    states = [counters.stream(index, split=split, seed=4) for split in counters.SPLITS]
    assert len(torch.cat(states).unique()) == 300_000


def test_shapes_can_be_held_out() -> None:
    batch = Tetrominoes(shapes=(2, 19)).generate(torch.arange(200))
    assert set(batch.factors["shape"].unique().tolist()) == {0, 2, 19}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": 20.0}, "expected shapes 1 to 19"),
        ({"shape": 0.0}, "expected shapes 1 to 19"),
        ({"x": 32.0}, "leaves the 35 x 35 frame"),
        ({"y": -1.0}, "leaves the 35 x 35 frame"),
    ],
    ids=["shape 20", "shape 0", "below", "left"],
)
def test_render_refuses_impossible_scenes(change: dict[str, float], message: str) -> None:
    factors = Tetrominoes().generate(torch.arange(2)).factors
    for name, value in change.items():
        factors[name][1, 2] = value
    with pytest.raises(ValueError, match=message):
        render(factors)


def test_render_refuses_overlaps() -> None:
    factors = Tetrominoes().generate(torch.arange(2)).factors
    for value in factors.values():
        value[1, 2] = value[1, 3]
    with pytest.raises(ValueError, match="objects overlap"):
        render(factors)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'dev'"):
        Tetrominoes(split="dev")
    with pytest.raises(ValueError, match="shapes: expected ids from 1 to 19, got \\[0\\]"):
        Tetrominoes(shapes=[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_makes_the_same_scenes(scenes: Batch) -> None:
    made = Tetrominoes(seed=3, device="cuda").generate(torch.arange(4000, device="cuda"))
    assert same(made.to("cpu"), scenes)
