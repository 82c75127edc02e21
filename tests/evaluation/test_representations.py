"""DCI, activeness and traversals of a model that knows the truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle_model import KINDS, SIDE, TABLE, Oracle, Scenes

from emorl.data import Batch
from emorl.evaluation.matched_objects import match
from emorl.evaluation.representations import measure_representations
from emorl.evaluation.traversals import (
    active,
    activeness,
    infer,
    ranges,
    recompose,
    sweep,
    traverse,
)
from emorl.metrics.factors import Factor, halves

IMAGES = 96


@pytest.fixture(scope="module")
def measured() -> tuple[dict, dict, list]:
    return measure_representations(Oracle(), Scenes(), images=IMAGES, trees=20)


def test_objects_get_their_slots_and_small_ones_are_left_out():
    """By the rules of 50 pixels: in every seventh image the second square has 8, one row."""
    objects = match(Oracle(), Scenes(), IMAGES, batch_size=10, seed=0)
    second = [i for i in range(IMAGES) if i % 5 and i % 7]
    assert objects.seen == IMAGES + len(second)
    expected = []
    for image in range(IMAGES):
        expected.append(TABLE[image, 0])
        if image in second:
            expected.append(TABLE[image, 1])
    true = torch.stack(expected).double().numpy()
    assert objects.codes[:, :2] == pytest.approx(true, abs=0.003)  # bytes
    assert objects.factors["x"] == pytest.approx(true[:, 0])
    kinds = [
        int(KINDS[image, place])
        for image in range(IMAGES)
        for place in ((0, 1) if image in second else (0,))
    ]
    assert objects.factors["shape"].tolist() == kinds
    assert "visibility" not in objects.factors


def test_a_segment_without_factors_is_no_object():
    class More(Scenes):
        def __getitems__(self, indices):
            batch = super().__getitems__(indices)
            batch.mask[:, :, :8, 8:] = 3
            return batch

    objects = match(Oracle(), More(), 6, batch_size=6, seed=0)
    assert objects.seen == match(Oracle(), Scenes(), 6, batch_size=6, seed=0).seen
    assert objects.beyond == 6
    told = "96 images have labels beyond the entities of the factors"
    assert told in measure_representations(Oracle(), More(), images=IMAGES, trees=5)[2][0]


class WithFactor(Scenes):
    """One more factor, of a width of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def __getitems__(self, indices):
        batch = super().__getitems__(indices)
        camera = torch.zeros(len(batch), self.width)
        return replace(batch, factors={"camera": camera, **batch.factors})


def test_a_number_of_an_image_is_no_object_s_factor(measured):
    metrics, _, notes = measure_representations(Oracle(), WithFactor(1), images=IMAGES, trees=20)
    assert (metrics, notes) == (measured[0], [])


def test_a_factor_that_differs_too_seldom_is_left_out(measured):
    class Seldom(Scenes):
        def __getitems__(self, indices):
            batch = super().__getitems__(indices)
            size = torch.ones(len(batch), 3) + (batch.index == self.different)[:, None] / 2
            return replace(batch, factors={"scale": size, **batch.factors})

    objects = match(Oracle(), Scenes(), IMAGES, batch_size=IMAGES, seed=0)
    order = halves(objects.codes, [Factor("row", np.arange(len(objects.codes)) * 1.0, False)])
    first_image = [0, *np.cumsum([len(rows) for rows in objects.visible])[:-1]]
    scenes = Seldom()
    scenes.different = next(
        image
        for image, (row, rows) in enumerate(zip(first_image, objects.visible, strict=True))
        if {*range(row, row + len(rows))} <= {*order.targets[1][0].astype(int).tolist()}
    )
    metrics, _, notes = measure_representations(Oracle(), scenes, images=IMAGES, trees=20)
    assert notes == ["not scored, since the same for all objects of the training half: scale"]
    assert metrics["dci_disentanglement"] == measured[0]["dci_disentanglement"]


def test_factors_of_different_numbers_of_entities_are_named():
    metrics, _, notes = measure_representations(Oracle(), WithFactor(2), images=IMAGES)
    told = "expected factors of the same number of entities, got camera 2, x 3, y 3, shape 3"
    assert (metrics, notes) == ({}, [f"no DCI: {told}"])


def test_an_oracle_is_disentangled(measured):
    metrics, details, notes = measured
    assert notes == []
    values = {name: summary["mean"] for name, summary in metrics.items()}
    assert values["dci_disentanglement"] > 0.95
    assert values["dci_completeness"] > 0.6  # red is there twice, which halves its completeness
    assert values["dci_informativeness_shape"] == 1
    assert values["dci_informativeness_accuracy"] == 1
    assert values["dci_informativeness_r2"] > 0.9
    assert values["dci_released_informativeness"] < 0.1
    assert values["dci_learned_agreement"] > 0.95
    assert values["dci_learned_disentanglement"] == pytest.approx(
        values["dci_disentanglement"], abs=0.1
    )
    assert values["probe_linear_r2"] > 0.99
    assert values["probe_linear_x"] > 0.99
    assert values["probe_mlp_shape"] > 0.95
    # red, green, blue, and which square it is; of objects that repeats nothing
    assert values["active_dimensions"] == 4
    assert values["dimension_redundancy"] < 0.3
    assert details["factors"] == ["x: continuous", "y: continuous", "shape: discrete"]
    assert len(details["importance"]) == len(details["activeness"]) == 6
    summary = metrics["dci_disentanglement"]
    assert math.isnan(summary["std"])
    assert summary["count"] == IMAGES + len([i for i in range(IMAGES) if i % 5 and i % 7])
    assert summary["excluded"] == 0


def test_what_dci_lacks_is_noted():
    class Bare(Scenes):
        def __getitems__(self, indices):
            batch = super().__getitems__(indices)
            return Batch(batch.image, batch.mask, {}, batch.index)

    metrics, _, notes = measure_representations(Oracle(), Bare(), images=IMAGES)
    assert (metrics, notes) == ({}, ["no DCI: scenes has no factors"])
    _, _, notes = measure_representations(Oracle(), Scenes(), images=20)
    assert notes == ["no DCI: 40 objects at most, 100 are needed"]
    _, _, notes = measure_representations(Oracle(), Scenes(), images=51)
    assert notes == ["no DCI: 85 of 85 objects have a slot; 100 are needed"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_factor_that_is_not_finite_is_named(measured, bad):
    """Of an object: what an image without a second square says of one is not read."""

    class Odd(Scenes):
        def __init__(self, image: int) -> None:
            super().__init__()
            self.image = image

        def __getitems__(self, indices):
            batch = super().__getitems__(indices)
            y = batch.factors["y"].clone()
            y[batch.index == self.image, 2] = bad
            return replace(batch, factors={**batch.factors, "y": y})

    metrics, details, notes = measure_representations(Oracle(), Odd(8), images=IMAGES, trees=20)
    assert (metrics, details, notes) == ({}, {}, ["no DCI: factor y of image 8 is not finite"])
    metrics, _, notes = measure_representations(Oracle(), Odd(7), images=IMAGES, trees=20)
    assert (metrics, notes) == (measured[0], [])


def test_activeness_by_hand():
    """One object's red goes from end to end: the variance of 6 values, on its share of pixels."""
    model, slots = Oracle(), torch.zeros(1, 3, 6)
    slots[0, :, 3] = torch.arange(3.0)
    slots[0, 1, 0], slots[0, 2, 0] = 0.2, 0.8
    found = activeness(model, slots, seed=1)
    values = torch.linspace(0, 0.8, 6).clamp(1e-3)  # the background's red is 0
    chosen = torch.randint(3, (1,), generator=torch.Generator().manual_seed(1)).item()
    pixels = (128, 64, 64)[chosen] / SIDE**2
    assert found[0].item() == pytest.approx(values.var().item() * pixels / 3, rel=1e-4)
    assert found[4] == found[5] == 0
    assert active(found).tolist()[-1] in (0, 3)
    assert 4 not in active(found).tolist()


def test_ranges_are_from_end_to_end():
    """The released midpoint would be (max - min) / 2."""
    slots = torch.tensor([[[2.0, -1.0], [4.0, -3.0]]])
    low, high = ranges(slots)
    assert low.tolist() == [2, -3]
    assert high.tolist() == [4, -1]


def test_a_traversal_changes_one_dimension_of_one_slot():
    model = Oracle()
    slots = infer(model, Scenes(), 20, means=True)
    assert slots.shape == (20, 3, 6)
    low, high = ranges(slots)
    traversals = traverse(model, slots[3], torch.tensor([1, 0]), low, high, values=5)
    assert [(t.slot, t.dimension) for t in traversals] == [
        (slot, dimension) for slot in range(3) for dimension in (1, 0)
    ]
    for traversal in traversals:
        assert traversal.values[0] == low[traversal.dimension]
        assert traversal.values[-1] == high[traversal.dimension]
        for value, image in zip(traversal.values, traversal.images, strict=True):
            changed = slots[3].clone()
            changed[traversal.slot, traversal.dimension] = value
            expected = model.compose(model.decode(changed[None]), changed[None]).reconstruction[0]
            torch.testing.assert_close(image, expected)


def test_chosen_slots_are_traversed_alone():
    model, slots, dimensions = Oracle(), torch.rand(3, 6), torch.tensor([1, 0])
    ends = torch.zeros(6), torch.ones(6)
    every = traverse(model, slots, dimensions, *ends, values=3)
    some = traverse(model, slots, dimensions, *ends, values=3, chosen=[2, 0])
    assert [(t.slot, t.dimension) for t in some] == [(2, 1), (2, 0), (0, 1), (0, 0)]
    assert torch.equal(some[0].images, every[4].images)


def test_slots_are_recomposed_as_the_model_does():
    model, image = Oracle(), Scenes().read_images([3])
    expected, found = model(image), recompose(model, infer(model, Scenes(), 4, means=True)[3])
    torch.testing.assert_close(found.reconstruction, expected.reconstruction)
    assert torch.equal(found.labels(), expected.labels())


def test_a_sweep_in_parts_is_the_whole(monkeypatch):
    model, slots = Oracle(), torch.rand(3, 6)
    low, high = torch.zeros(6), torch.ones(6)
    whole = sweep(model, slots, 1, range(6), low, high, 4)
    monkeypatch.setattr("emorl.evaluation.traversals._TOGETHER", 8)
    assert torch.equal(sweep(model, slots, 1, range(6), low, high, 4), whole)
    assert whole.shape == (6, 4, 3, SIDE, SIDE)
