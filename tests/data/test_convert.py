"""Conversions that stop and go on, in several processes; what they store is in test_hdf5.py."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import shutil
import signal
import sys
import time
import zlib
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from test_hdf5 import assert_same

from emorl.data import Batch, convert, open_dataset
from emorl.data.base import ObjectDataset
from emorl.data.generators.clevr import ClevrTexLike
from emorl.data.generators.multi_dsprites import MultiDSprites
from emorl.data.generators.tetrominoes import Tetrominoes
from emorl.data.stored import checksums

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
    (mine := tmp_path / "new/a.h5.parts/mine.txt").touch()
    convert(source, path, workers=workers)
    mine.unlink()
    mine.parent.rmdir()  # nothing else was left
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


class Waiting(Counting):
    """Says who reads a part, and does not come to an end."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        if max(indices) > 1:
            (self.folder / str(os.getpid())).touch()
            time.sleep(60)
        return super().__getitems__(indices)


def is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.skipif(sys.platform != "linux", reason="workers of a killed process end on Linux")
def test_workers_do_not_outlive_the_process_that_started_them(tmp_path: Path) -> None:
    (readers := tmp_path / "readers").mkdir()
    arguments = (Waiting(readers), tmp_path / "a.h5")
    process = multiprocessing.get_context("fork").Process(
        target=convert, args=arguments, kwargs={"workers": 2}
    )
    process.start()
    try:
        assert within(30, lambda: len([*readers.iterdir()]) == 2)
    finally:
        process.kill()
        process.join()
    workers = [int(path.name) for path in readers.iterdir()]
    assert within(10, lambda: not any(map(is_alive, workers)))


def test_parts_of_another_conversion_are_not_taken(tmp_path: Path) -> None:
    path, source = tmp_path / "a.h5", Counting()
    source.stop_at = 250
    with pytest.raises(KeyboardInterrupt):
        convert(source, path)
    for other, images in ((Counting(290), None), (open_dataset("tetrominoes"), 300)):
        with pytest.raises(ValueError, match=r"a\.h5\.parts: holds parts of another conversion"):
            convert(other, path, images)


@pytest.mark.parametrize("change", ["written anew", "another of the same name"])
def test_parts_of_a_file_that_changed_are_not_taken(change: str, tmp_path: Path) -> None:
    """Though its first images are the same."""
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), np.uint8)
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "train.npy", images)
    path, source = tmp_path / "a.h5", open_dataset(tmp_path / "x/train.npy")
    convert(source, path)
    parts = conversion._plan(source, source[:2], 300, "train")
    if change == "written anew":
        os.utime(source.files()[0], ns=(1, 1))
    else:
        source = open_dataset(tmp_path / "y/train.npy")
    assert conversion._plan(source, source[:2], 300, "train") != parts


@pytest.fixture
def dark_files(tmp_path: Path) -> tuple[Path, Path]:
    """Images of which the first two are black, as a file with visibilities and as pictures."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (300, 8, 8, 3), np.uint8)
    images[:2] = 0
    with h5py.File(tmp_path / "dark.h5", "w") as file:
        for split in ("train", "val"):
            file[f"{split}/imgs"] = images
            file[f"{split}/factors"] = np.tile([1.0, 0.0], (300, 1))[..., None]
            file[f"{split}/factors"].attrs["columns"] = ["visibility"]
    (tmp_path / "dark").mkdir()
    for number, image in enumerate(images[:20] * 255):
        Image.fromarray(image).save(tmp_path / f"dark/{number:02}.png")
    return tmp_path / "dark.h5", tmp_path / "dark"


FILE, FOLDER = 0, 1
READINGS: list[tuple[int | str, str, Any, Any]] = [
    (FILE, "split", "train", "val"),
    (FILE, "value_range", (0, 1), (0, 255)),
    (FILE, "crop", (0, 4, 0, 4), (4, 8, 4, 8)),
    (FILE, "crop", "centre", None),
    (FILE, "size", 4, 5),
    (FILE, "max_objects", 1, 2),
    (FOLDER, "value_range", None, (0, 255)),
    (FOLDER, "crop", (0, 4, 0, 4), [np.int64(4), 8, 4, 8]),
    (FOLDER, "size", 4, 5),
    ("tetrominoes", "seed", 0, 1),
    ("tetrominoes", "split", "train", "val"),
    ("multi_dsprites", "seed", 0, 1),
    ("clevr6", "seed", 0, 1),
    ("clevr6", "size", 8, 9),
    ("clevrtex-like", "split", "train", "val"),
]
"""Whether a file, a folder or which generator; an option; two values of it."""
OF_NO_IMAGE = {"spec", "device", "limit"}


@pytest.mark.parametrize(("kind", "option", "one", "other"), READINGS)
def test_parts_of_another_reading_are_not_taken(
    kind: int | str, option: str, one: Any, other: Any, dark_files: tuple[Path, Path]
) -> None:
    """Though the first images look alike, as `first` has it."""
    spec = dark_files[kind] if isinstance(kind, int) else kind
    common: dict[str, Any] = {"split": "all"} if kind == FOLDER else {}
    if kind == FILE:
        common["value_range"] = (0, 255)
    sources = [open_dataset(spec, **{**common, option: value}) for value in (one, other)]
    first = Counting()[:2]
    folder = dark_files[1].with_name("a.h5.parts")
    plans = [conversion._plan(source, first, 100, "train") for source in sources]
    conversion._begin(folder, plans[0])
    conversion._begin(folder, plans[0])
    with pytest.raises(ValueError, match=r"a\.h5\.parts: holds parts of another conversion"):
        conversion._begin(folder, plans[1])


def test_no_option_of_a_reading_is_forgotten() -> None:
    """A new option of `open_dataset` belongs into the readings above, or changes no image."""
    tried = {option for _, option, _, _ in READINGS}
    assert tried | OF_NO_IMAGE == {*inspect.signature(open_dataset).parameters}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Tetrominoes(), Tetrominoes(shapes=(1, 2))),
        (MultiDSprites(), MultiDSprites(least_value=0.25)),
        (MultiDSprites(), MultiDSprites(grid=True)),
        (MultiDSprites(), MultiDSprites("binarized")),
        (ClevrTexLike(most=3), ClevrTexLike(most=4)),
    ],
)
def test_a_reading_tells_generators_apart(one: ObjectDataset, other: ObjectDataset) -> None:
    assert one.reading() != other.reading()


def test_a_stopped_conversion_does_not_go_on_with_another_crop(
    dark_files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_part = conversion.write_part

    def stop(source: ObjectDataset, images: range, path: Path) -> None:
        if images.start == 200:
            raise KeyboardInterrupt
        write_part(source, images, path)

    top, bottom = (
        open_dataset(dark_files[FILE], value_range=(0, 1), crop=crop)
        for crop in ((0, 4, 0, 4), (4, 8, 4, 8))
    )
    monkeypatch.setattr(conversion, "write_part", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(top, tmp_path / "a.h5")
    monkeypatch.undo()
    monkeypatch.setattr(conversion, "PART", 100)
    with pytest.raises(ValueError, match=r"a\.h5\.parts: holds parts of another conversion"):
        convert(bottom, tmp_path / "a.h5")
    assert torch.equal(open_dataset(convert(top, tmp_path / "a.h5"))[:].image, top[:].image)


def test_a_folder_in_the_place_of_the_parts_is_not_touched(tmp_path: Path) -> None:
    mine = tmp_path / "a.h5.parts/mine.txt"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(ValueError, match=r"a\.h5\.parts: expected no such folder"):
        convert(Counting(), tmp_path / "a.h5")
    assert mine.exists()


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
    with pytest.raises(ValueError, match=r"a\.h5: image 170 was read back otherwise"):
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


class LargestLabel(Counting):
    """Large label maps of 0, 1 and, in the last image alone, 255."""

    def __getitems__(self, indices: Any) -> Batch:
        self.read += indices
        index = torch.tensor(list(indices))
        mask = torch.arange(256 * 256).view(1, 1, 256, 256) % 2
        mask = torch.where((index == self.length - 1)[:, None, None, None], mask * 255, mask)
        image = torch.arange(256).byte().expand(len(index), 3, 256, -1)
        return Batch(image.contiguous(), mask.byte(), {}, index)


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak is Linux's")
def test_large_labels_take_little_memory(tmp_path: Path) -> None:
    """Masks of all 12 images would have 201 MB, and were there several times."""
    resource = pytest.importorskip("resource")
    source = LargestLabel(12)
    convert(source, tmp_path / "warm.h5", 1)
    reading, writing = multiprocessing.Pipe(duplex=False)

    def measured() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        convert(source, tmp_path / "a.h5")
        writing.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    process = multiprocessing.get_context("fork").Process(target=measured)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert reading.recv() < 300 << 10
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["train/masks"].shape == (12, 256, 256, 256, 1)
        assert file["train/masks"].chunks == (1, 256, 256, 256, 1)
        assert file["train/masks"][11, 255].max() == 255
    assert_same(open_dataset(tmp_path / "a.h5")[9:], source[9:])


def test_a_checksum_tells_images_masks_and_factors_apart() -> None:
    batch = Counting()[5:9]
    assert batch.mask is not None
    assert checksums(batch) == [checksums(Counting()[i : i + 1])[0] for i in range(5, 9)]
    sums = {*checksums(batch)}
    sums.update(checksums(Batch(batch.image, batch.mask + 1, batch.factors, batch.index)))
    sums.update(checksums(Batch(batch.image, None, batch.factors, batch.index)))
    sums.update(checksums(Batch(batch.image, batch.mask, {}, batch.index)))
    assert len(sums) == 16
