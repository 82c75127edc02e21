"""CLEVR6 of CLEVR."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from layout_testing import Scenes, object_centric_library, root_arrays, scenes
from record_writing import FACTORS, written

from emorl.cli import main
from emorl.data import open_dataset

VISIBLE = [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0], [0, 0, 0]]


def records(path: Path) -> Scenes:
    made = scenes(35, 35, factors=FACTORS)
    made.factors["visibility"][:] = VISIBLE
    return written(path, made, made.entity_masks[..., None])


def library(path: Path) -> Scenes:
    made = object_centric_library(path)
    with h5py.File(path, "a") as file:
        file["visibility"][:] = np.array(VISIBLE)[..., None]
    return made


@pytest.mark.parametrize("write", [records, library], ids=["TFRecord", "HDF5"])
def test_images_with_few_objects_are_kept_in_order(write, tmp_path):
    path = tmp_path / "a"
    made = write(path)
    dataset = open_dataset(path, max_objects=1)
    kept = [1, 2, 4, 5]
    assert len(dataset) == 4
    assert dataset.part == "at most 1 objects, 4 of 6 images"
    batch = dataset.__getitems__([3, 0, 1])
    assert batch.index.tolist() == [3, 0, 1]
    rows = [kept[index] for index in (3, 0, 1)]
    images = made.images[rows].transpose(0, 3, 1, 2)
    assert (batch.image.numpy() == images).all()
    assert (batch.mask[:, 0].numpy() == made.labels[rows]).all()
    assert torch.equal(dataset.read_images([3, 0, 1]), batch.image)
    assert len(open_dataset(path, max_objects=2)) == 6
    assert len(open_dataset(path, max_objects=1, limit=2)) == 2
    with pytest.raises(IndexError):
        dataset[4]


def test_what_cannot_be_filtered_is_one_line(tmp_path):
    root_arrays(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"a\.h5: expected a factor visibility, got none"):
        open_dataset(tmp_path / "a.h5", max_objects=6)
    with pytest.raises(ValueError, match="max_objects: expected none for the generator tetromin"):
        open_dataset("tetrominoes", max_objects=6)
    library(tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5", "a") as file:
        file["visibility"][3] = np.nan
    with pytest.raises(ValueError, match=r"c\.h5: image 3: factor visibility: expected fin"):
        open_dataset(tmp_path / "c.h5", max_objects=1)
    object_centric_library(tmp_path / "b.h5")
    with pytest.raises(ValueError, match=r"b\.h5: expected images of at most 1 objects"):
        open_dataset(tmp_path / "b.h5", max_objects=1)


def test_a_conversion_keeps_few_objects(tmp_path, capsys):
    library(tmp_path / "a.h5")
    line = ["data", "convert", str(tmp_path / "a.h5"), "--max-objects", "1", "--out"]
    assert main([*line, str(tmp_path / "b.h5")]) == 0
    assert len(open_dataset(tmp_path / "b.h5")) == 4


def test_an_entity_is_visible_by_the_largest_of_its_numbers(tmp_path):
    visibility = np.zeros((3, 3, 2), np.float32)
    visibility[:, :2, 1] = visibility[1:, 2, 0] = visibility[2] = 1
    np.savez(tmp_path / "a.npz", images=np.full((3, 4, 4, 3), 200, np.uint8), visibility=visibility)
    kept = [len(open_dataset(tmp_path / "a.npz", max_objects=most)) for most in (1, 2)]
    assert kept == [1, 3]
