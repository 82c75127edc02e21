"""Noise that belongs to the image: in any batch the same numbers, for every model."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from emorl.data import open_dataset
from emorl.data.random import normal
from emorl.evaluation import ImageNoise, evaluate, protocols
from emorl.models import MODELS, ObjectCentricModel
from emorl.nn import share_of, standard_normal
from emorl.training.config_file import find_config, load_config

IMAGES, SLOTS, WIDTH = 33, 4, 8
DRAWING = [name for name in MODELS if name != "slot_mlp"]
SIZES = (1, 7, 32)
# Between batches of other sizes there is nothing but the rounding of float64, u = 1.1e-16: an
# image's likelihood adds up 3,675 values, 4e-13 at worst, and refinement that makes this a hundred
# times larger is within the tolerance. Another draw changes the numbers by a thousandth or more.
TOLERANCE = 1e-10


def draws(images: range, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Three draws of images, of slots in both shapes, as [images, numbers]."""
    noise = ImageNoise(images, seed=seed)
    shapes = [(len(images) * SLOTS, WIDTH), (len(images), SLOTS, WIDTH), (len(images) * SLOTS, 3)]
    drawn = [standard_normal(torch.empty(shape, dtype=dtype), noise) for shape in shapes]
    assert [x.shape for x in drawn] == shapes
    assert all(x.dtype == dtype for x in drawn)
    return [x.reshape(len(images), -1) for x in drawn]


def smoke(name: str) -> ObjectCentricModel:
    torch.manual_seed(0)
    return MODELS[name](load_config(find_config("smoke", name)).network).double()


def batches(size: int, images: int = IMAGES) -> list[range]:
    return [range(start, min(start + size, images)) for start in range(0, images, size)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_images_noise_has_the_same_bits_in_any_batch(size, dtype):
    whole = draws(range(IMAGES), dtype=dtype)
    parts = zip(*(draws(batch, dtype=dtype) for batch in batches(size)), strict=True)
    for expected, part in zip(whole, parts, strict=True):
        assert torch.equal(torch.cat(part), expected)


def test_noise_is_of_the_index_and_not_of_the_place():
    forward = standard_normal(torch.empty(3, 5), ImageNoise(range(3), seed=0))
    backward = standard_normal(torch.empty(3, 5), ImageNoise(range(2, -1, -1), seed=0))
    assert torch.equal(forward, backward.flip(0))


def test_seeds_and_draws_differ():
    first, second, _ = draws(range(IMAGES))
    assert not torch.isclose(first, second).any()
    assert not torch.isclose(first, draws(range(IMAGES), seed=1)[0]).any()


def test_noise_is_standard_normal_and_independent():
    """All images' draws as rows: no row, column or neighbour knows of another."""
    noise = ImageNoise(range(64), seed=0)
    drawn = torch.stack(
        [standard_normal(torch.empty(64, 256, dtype=torch.float64), noise) for _ in range(8)]
    )
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    # Moments of n numbers: mean 0, 1, 0 and 3 with variances 1 / n, 2 / n, 15 / n and 96 / n.
    for power, (mean, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], 1):
        deviation = (drawn**power).mean() - mean
        assert abs(deviation) < 4 * (variance / drawn.numel()) ** 0.5
    rows = drawn.flatten(0, 1)  # of a draw and an image, [512, 256]
    for table in (rows, rows.T):
        count = len(table)
        correlation = torch.corrcoef(table)[*torch.triu_indices(count, count, 1)]
        bound = stats.norm.isf(0.01 / 2 / len(correlation)) / table.shape[1] ** 0.5
        assert correlation.abs().max() < bound


def test_the_largest_numbers_are_finite():
    states = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    ends = normal(states)
    assert ends.isfinite().all()
    assert ends[0] == -ends[1] < -8
    assert ends[2] == -ends[3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_noise_is_the_same_on_a_gpu():
    like = torch.empty(IMAGES * SLOTS, WIDTH, dtype=torch.float64)
    ours = standard_normal(like, ImageNoise(range(IMAGES), seed=0))
    theirs = standard_normal(like.cuda(), ImageNoise(range(IMAGES), seed=0, device="cuda"))
    torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-14, atol=1e-15)


def test_each_image_is_a_batch():
    assert share_of(ImageNoise(range(4), seed=0)) == (0, 0.25)


@pytest.mark.parametrize("name", MODELS)
def test_an_image_has_the_same_numbers_in_any_batch(name, monkeypatch):
    """And however many images are measured: those of the image alone."""
    monkeypatch.setattr(protocols, "_summary", lambda _, values: {"all": values, "excluded": 0})
    model, dataset = smoke(name), open_dataset("tetrominoes", split="test")
    alone = evaluate(model, dataset, images=IMAGES, batch_size=1)["metrics"]
    for images, size in [(3, 32), (10, 7), (IMAGES, 7), (IMAGES, 32)]:
        metrics = evaluate(model, dataset, images=images, batch_size=size)["metrics"]
        assert metrics.keys() == alone.keys()
        for term, summary in metrics.items():
            expected = alone[term]["all"][:images]
            torch.testing.assert_close(summary["all"], expected, rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_seeds_matter_where_a_model_draws(name):
    model, dataset = smoke(name), open_dataset("tetrominoes", split="test")
    results = [evaluate(model, dataset, images=2, seed=seed)["metrics"]["nll"] for seed in (0, 1)]
    assert (results[0] != results[1]) == (name in DRAWING)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("images", [2, 8])
def test_noise_of_other_images_is_refused(name, images):
    model, batch = smoke(name), torch.rand(4, 3, 35, 35)
    message = f"generator: expected noise for 4 images, got noise for {images}"
    for call in (model, model.score, model.objective):
        with pytest.raises(ValueError, match=message):
            call(batch, generator=ImageNoise(range(images), seed=0))


@pytest.mark.parametrize(
    ("images", "seed", "message"),
    [
        ([], 0, r"images: expected indices of images, 0 or more, got \[\]"),
        ([-1, 0], 0, r"images: expected indices of images, 0 or more, got \[-1, 0\]"),
        ([0.5], 0, "images: expected a whole number, got 0.5"),
        ([0], 0.5, "seed: expected a whole number, got 0.5"),
        ([0], None, "seed: expected a whole number, got null"),
    ],
)
def test_wrong_indices_and_seeds_are_refused(images, seed, message):
    with pytest.raises(ValueError, match=message):
        ImageNoise(images, seed=seed)


@pytest.mark.parametrize("drawn", ["x", 1.5, True])
def test_draws_are_counted_by_whole_numbers(drawn):
    with pytest.raises(ValueError, match="drawn: expected a whole number or null"):
        ImageNoise([0], seed=0, drawn=drawn)
