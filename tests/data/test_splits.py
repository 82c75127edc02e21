"""The splits of files without groups, with fewer images than the published numbers."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from layout_testing import object_centric_library, torch_datasets
from test_tfrecord import framed, serialised, tiny

from emorl.data import open_dataset, splits
from emorl.data.readers import tfrecord
from emorl.training.config import DataConfig
from emorl.training.images import held_out_images, training_images
from emorl.training.run import notes_on

ORDERS = {
    "object-centric-library's files": (object_centric_library, ["train", "val", "test"]),
    "multi_object_datasets_torch's files": (torch_datasets, ["train", "test", "val"]),
}


@pytest.mark.parametrize("layout", ORDERS)
def test_arrays_at_the_root_are_divided_in_the_published_order(layout, tmp_path, monkeypatch):
    write, names = ORDERS[layout]
    path = tmp_path / "a.h5"
    made = write(path)
    assert {len(open_dataset(path, split=name)) for name in names} == {6}, "too few to divide"
    sizes = dict(zip(names, (3, 2, 1), strict=True))
    monkeypatch.setitem(splits._PUBLISHED, layout, tuple(sizes.items()))
    first = 0
    for name, size in sizes.items():
        dataset = open_dataset(path, split=name)
        batch = dataset[:]
        assert (
            batch.image.numpy() == made.images[first : first + size].transpose(0, 3, 1, 2)
        ).all()
        assert (batch.mask[:, 0].numpy() == made.labels[first : first + size]).all()
        assert (batch.factors["x"].numpy() == made.factors["x"][first : first + size]).all()
        assert batch.index.tolist() == [*range(size)]
        last = first + size - 1
        assert dataset.part == f"{name}: images {first} to {last} of the file, as published"
        first += size
    assert len(open_dataset(path, split="all")) == 6
    with pytest.raises(ValueError, match=r"a published split, train, .* or all, got 'dev'"):
        open_dataset(path, split="dev")


@pytest.mark.parametrize("memory", [10**9, 20_000], ids=["in memory", "on disk"])
def test_records_are_divided_as_published(memory, tmp_path, monkeypatch):
    monkeypatch.setitem(splits._PUBLISHED, "tetrominoes", (("train", 4), ("test", 2)))
    monkeypatch.setattr(tfrecord, "MEMORY_LIMIT", memory)
    path = tmp_path / "a"
    records = [framed(serialised(tiny(value))) for value in range(9)]
    for count, train, test in [
        (9, [0, 1, 2, 3], [4, 5]),
        (6, [0, 1, 2, 3], [4, 5]),
        (5, range(5), range(5)),  # as many as for training, and one
        (3, range(3), range(3)),
    ]:
        path.write_bytes(b"".join(records[:count]))
        for split, expected in {"train": train, "test": test, "all": range(count)}.items():
            dataset = open_dataset(path, split=split)
            assert dataset.count(100) == len(dataset) == len(expected)
            assert (dataset.part is not None) == (count >= 6 and split != "all")
            assert dataset[:].image[:, 0, 0, 0].tolist() == [*expected]
            with pytest.raises(IndexError):
                dataset.read_images([len(expected)])
    path.write_bytes(b"".join(records))
    with pytest.raises(ValueError, match=r"a: expected a published split, train, test or all"):
        open_dataset(path, split="val")


def test_the_published_numbers_of_images():
    """datasets.md, section 6."""
    assert splits.published("tetrominoes", "train") == range(60_000)
    assert splits.published("clevr", "test") == range(70_000, 70_320)
    assert splits.needed("object-centric-library's files") == 100_000
    assert splits.published("cater", "train") is None
    library, torch_files = ORDERS
    assert splits.published(library, "val") == splits.published(torch_files, "test")
    assert splits.published(library, "test") == splits.published(torch_files, "val")
    assert splits.published(library, "test") == range(95_000, 100_000)


def test_dark_images_of_a_split_are_noticed(tmp_path, monkeypatch):
    """The first images of the split are looked at, not those of the file."""
    monkeypatch.setitem(
        splits._PUBLISHED, "object-centric-library's files", (("train", 3), ("test", 3))
    )
    path = tmp_path / "a.h5"
    object_centric_library(path)
    with h5py.File(path, "a") as file:
        file["image"][3:] = np.uint8(1)
    open_dataset(path)
    with pytest.raises(ValueError, match="at most 1 in the first 3 images"):
        open_dataset(path, split="test")


def test_images_that_are_trained_on_are_not_called_held_out(tmp_path, monkeypatch):
    """A file's test images are others than its first, but among all."""
    monkeypatch.setitem(splits._PUBLISHED, "tetrominoes", (("train", 4), ("test", 2)))
    path = tmp_path / "a"
    path.write_bytes(b"".join(framed(serialised(tiny(value))) for value in range(6)))
    data = DataConfig(train=str(path), held_out=str(path), split="all")
    [line] = notes_on(data, training_images(data), held_out_images(data))
    assert "the run is trained on these images" in line
    data = DataConfig(train=str(path), held_out=str(path))
    assert notes_on(data, training_images(data), held_out_images(data)) == []
