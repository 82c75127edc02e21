"""Segmenting picture files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle_model import Oracle
from PIL import Image

from emorl.evaluation.own_pictures import Segmented, find_pictures, read_picture, segment


def squares(size: int = 64) -> np.ndarray:
    """Two squares on black, at a multiple of the model's size."""
    picture = np.zeros((size, size, 3), dtype=np.uint8)
    picture[: size // 2, : size // 2] = (200, 0, 0)
    picture[size // 2 :, size // 2 :] = (0, 0, 100)
    return picture


def test_pictures_are_found_in_subfolders_by_name(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("b.png", "a.JPG", "sub/c.webp", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_pictures(tmp_path)] == ["a.JPG", "b.png", "c.webp"]
    with pytest.raises(ValueError, match=r"expected pictures .*, got none"):
        find_pictures(tmp_path / "empty")
    with pytest.raises(ValueError, match="expected a folder of pictures, got no folder"):
        find_pictures(tmp_path / "no")


def test_a_picture_is_read_as_it_is_seen(tmp_path):
    """Turned as its EXIF says, without transparency, grey as three channels."""
    wide = np.zeros((4, 6, 3), dtype=np.uint8)
    wide[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(wide).save(tmp_path / "a.png", exif=exif)
    turned = read_picture(tmp_path / "a.png")
    assert turned.shape == (6, 4, 3)
    assert turned[0, 3, 0] == 255
    clear = np.full((2, 2, 4), 255, dtype=np.uint8)
    clear[0, 0, 3] = 0
    Image.fromarray(clear).save(tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png")[..., 0].tolist() == [[0, 255], [255, 255]]
    Image.fromarray(wide[..., 0]).save(tmp_path / "c.png")
    assert read_picture(tmp_path / "c.png").shape == (4, 6, 3)
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"d\.png: not a picture that can be read"):
        read_picture(tmp_path / "d.png")


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
    places = find_pictures(tmp_path)
    whole, single = (
        [r.labels for r in segment(Oracle(), places, batch_size=size)] for size in (3, 1)
    )
    assert all(map(np.array_equal, whole, single))
