"""Segmenting picture files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle_model import Oracle
from PIL import Image

from emorl.evaluation.own_pictures import Segmented, segment
from emorl.evaluation.per_image import largest_at


def squares(size: int = 64) -> np.ndarray:
    """Two squares on black, at a multiple of the model's size."""
    picture = np.zeros((size, size, 3), dtype=np.uint8)
    picture[: size // 2, : size // 2] = (200, 0, 0)
    picture[size // 2 :, size // 2 :] = (0, 0, 100)
    return picture


def test_pictures_are_read_as_for_training(tmp_path):
    """Grey of 16 bits goes to 65535; where it cannot, the picture is left out until it is told."""
    bright, dark = (np.full((4, 4), value, np.uint16) for value in (40_000, 200))
    places = [tmp_path / "bright.png", tmp_path / "dark.png"]
    for place, pixels in zip(places, (bright, dark), strict=True):
        Image.fromarray(pixels).save(place)
    whole, refused = segment(Oracle(), places)
    assert isinstance(whole, Segmented)
    assert (whole.image == round(40_000 / 257)).all()
    assert isinstance(refused, ValueError)
    assert "dark.png: 16 bits, but nothing above 255" in str(refused)
    refused, shown = segment(Oracle(), places, value_range=(0, 255))
    assert isinstance(shown, Segmented)
    assert (shown.image == 200).all()
    assert "bright.png: expected values from 0 to 255" in str(refused)


def test_labels_have_the_size_of_the_picture_and_stand_where_its_objects_are(tmp_path):
    places = [tmp_path / f"{name}.png" for name in "abcd"]
    Image.fromarray(squares()).save(places[0])
    places[1].write_bytes(b"nothing")
    Image.fromarray(squares(16)).save(places[2])
    Image.fromarray(squares()[:, ::2]).save(places[3])
    model = Oracle()
    results = [*segment(model, places, batch_size=3)]
    assert isinstance(results[1], ValueError)
    sizes = {0: (64, 64), 2: (16, 16), 3: (64, 32)}
    for index, size in sizes.items():
        result = results[index]
        assert isinstance(result, Segmented)
        assert result.labels.shape == size
        assert result.image.shape == (*size, 3)
        first, second = result.labels[0, 0], result.labels[-1, -1]
        assert len({first, second, result.labels[0, -1]}) == 3
        assert (result.labels[: size[0] // 2 - 4, : size[1] // 2 - 4] == first).all()
        assert (result.labels[size[0] // 2 + 4 :, size[1] // 2 + 4 :] == second).all()


def test_a_picture_does_not_depend_on_its_batch(tmp_path):
    for index in range(3):
        pixels = torch.randint(256, (20, 20, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    places = sorted(tmp_path.glob("*.png"))
    whole, single = (
        [r.labels for r in segment(Oracle(), places, batch_size=size)] for size in (3, 1)
    )
    assert all(map(np.array_equal, whole, single))


def test_few_large_pictures_are_in_memory_at_once(tmp_path, monkeypatch):
    class Counting(Oracle):
        def _decompose(self, request):
            batches.append(len(request.target))
            return super()._decompose(request)

    batches: list[int] = []
    places = [tmp_path / f"{index}.png" for index in range(5)]
    for place in places:
        Image.fromarray(squares()).save(place)
    monkeypatch.setattr("emorl.evaluation.own_pictures.MOST_HELD", 2 * squares().nbytes)
    results = [*segment(Counting(), places)]
    assert batches == [2, 2, 1]
    assert [result.path for result in results] == places
    assert all(result.labels.dtype == np.uint8 for result in results)


def test_many_slots_have_larger_numbers():
    masks = np.eye(300, dtype=np.float32).reshape(300, 15, 20)
    found = largest_at(masks, (15, 20))
    assert found.dtype == np.int32
    assert np.array_equal(found.ravel(), np.arange(300))


@pytest.mark.parametrize("batch_size", [0, -1, True, 1.5])
def test_a_batch_has_pictures(batch_size):
    """None came out of less than one."""
    with pytest.raises(ValueError, match="batch_size: expected"):
        next(segment(None, [], batch_size=batch_size))
