"""Conversions that stop and go on, in several processes; what they store is in test_hdf5.py."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import zlib
from collections import namedtuple
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from test_hdf5 import assert_same

from emorl.data import Batch, convert, open_dataset
from emorl.data.base import ObjectDataset
from emorl.data.stored import checksum

conversion = sys.modules["emorl.data.convert"]


class Counting(ObjectDataset):
    """Images 3 x 4, each of its index; image i has i % 5 objects, and reading is counted."""

    name, image_size = "counting", (3, 4)
    stop_at: int | None = None
    kill_at: int | None = None

    def __init__(self, length: int = 300) -> None:
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Any) -> Batch:
        self.read += indices
        index = torch.tensor(list(indices))
        if self.stop_at is not None and self.stop_at in indices:
            raise KeyboardInterrupt
        if self.kill_at is not None and self.kill_at in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        image = (index % 256).byte()[:, None, None, None].expand(-1, 3, 3, 4)
        mask = torch.arange(12).view(1, 1, 3, 4) % (index % 5 + 1)[:, None, None, None]
        factors = {"x": index[:, None].float().expand(-1, 5), "color": torch.ones(len(index), 5, 3)}
        return Batch(image.contiguous(), mask.byte(), factors, index)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "PART", 100)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_stopped_goes_on(workers: int, tmp_path: Path) -> None:
    path, source = tmp_path / "new" / "a.h5", Counting()
    source.stop_at = 250
    with pytest.raises(KeyboardInterrupt):
        convert(source, path)
    parts = sorted(p.name for p in (tmp_path / "new/a.h5.parts").iterdir())
    assert parts == ["000000000.h5", "000000100.h5", "plan.json"]
    assert not path.exists()
    source.stop_at, source.read = None, []
    convert(source, path, workers=workers)
    assert {*source.read} <= {0, 1, *range(200, 300)}, "the first two tell what the source is"
    assert_same(open_dataset(path)[:], Counting()[:])
    assert [*path.parent.iterdir()] == [path]


def test_what_the_disk_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that are there already take no more room."""
    place, source = tmp_path / "new" / "a.h5", Counting()
    least = len(zlib.compress(source[0]["image"].numpy().tobytes(), 1))

    def disk_of(images: int) -> None:
        usage = namedtuple("usage", "free")(images * least)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    disk_of(299)
    with pytest.raises(ValueError, match=r"a\.h5: expected up to 299 images, .* free\), got 300$"):
        convert(source, place)
    assert [*tmp_path.iterdir()] == []
    disk_of(300)
    source.stop_at = 250
    with pytest.raises(KeyboardInterrupt):
        convert(source, place)
    source.stop_at = None
    disk_of(299)
    assert convert(source, place).exists()


def test_a_killed_process_is_one_line_and_goes_on(tmp_path: Path) -> None:
    path, source = tmp_path / "a.h5", Counting()
    source.kill_at = 150
    with pytest.raises(OSError, match=r"a\.h5\.parts: a process was killed; the same command goes"):
        convert(source, path, workers=2)
    source.kill_at = None
    convert(source, path, workers=2)
    assert_same(open_dataset(path)[:], Counting()[:])


def test_parts_of_another_conversion_are_not_taken(tmp_path: Path) -> None:
    path, source = tmp_path / "a.h5", Counting()
    source.stop_at = 250
    with pytest.raises(KeyboardInterrupt):
        convert(source, path)
    for other, images in ((Counting(290), None), (open_dataset("tetrominoes"), 300)):
        with pytest.raises(ValueError, match=r"a\.h5\.parts: holds parts of another conversion"):
            convert(other, path, images)


@pytest.mark.parametrize("name", ["imgs", "masks", "factors"])
def test_what_is_read_back_otherwise_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that keeps other numbers than it was given."""
    join = conversion.join

    def join_badly(parts: Any, path: Path, *rest: Any) -> None:
        join(parts, path, *rest)
        with h5py.File(path, "a") as file:
            row = file[f"train/{name}"][170]
            file[f"train/{name}"][170] = 255 - row if row.dtype == np.uint8 else row + 1

    monkeypatch.setattr(conversion, "join", join_badly)
    with pytest.raises(ValueError, match=r"a\.h5: images 164 to 199 were read back otherwise"):
        convert(Counting(), tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


class Many(Counting):
    """Objects with labels up to 1000."""

    def __getitems__(self, indices: Any) -> Batch:
        batch = super().__getitems__(indices)
        assert batch.mask is not None
        return Batch(batch.image, batch.mask.int() * 250, {}, batch.index)


def test_many_objects_are_stored_as_labels(tmp_path: Path) -> None:
    path = convert(Many(), tmp_path / "a.h5")
    with h5py.File(path) as file:
        assert file["train/masks"].shape == (300, 1, 3, 4, 1)
    assert_same(open_dataset(path)[:], Many()[:])


def test_a_checksum_tells_images_masks_and_factors_apart() -> None:
    batch = Counting()[5:9]
    assert batch.mask is not None
    sums = {checksum(batch), checksum(Counting()[6:10])}
    sums.add(checksum(Batch(batch.image, batch.mask + 1, batch.factors, batch.index)))
    sums.add(checksum(Batch(batch.image, None, batch.factors, batch.index)))
    sums.add(checksum(Batch(batch.image, batch.mask, {}, batch.index)))
    assert len(sums) == 5
