"""Files with odd contents, or more than a machine can hold: one line, before memory is taken."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from test_tfrecord import framed, serialised, tiny

from emorl.data import BatchSampler, check, convert, open_dataset
from emorl.data.readers.hdf5_storage import slow_reads

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
MASKS = np.ones((6, 2, 5, 4, 1), np.uint8)


def link(target: Any) -> Any:
    return lambda group, name: group.__setitem__(name, target)


def declared(shape: tuple[int, ...], dtype: Any, **options: Any) -> Any:
    return lambda group, name: group.create_dataset(name, shape, dtype, **options)


def hard(group: h5py.Group, name: str) -> None:
    group[name] = group.parent


@pytest.mark.parametrize(
    "to", [h5py.SoftLink("/no"), h5py.SoftLink("/train"), h5py.ExternalLink("no.h5", "/train")]
)
def test_a_split_that_is_a_link_to_nowhere_is_called_so(to: object, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train"] = to
    with pytest.raises(ValueError, match=r"expected train/imgs, got a link that leads nowhere$"):
        open_dataset(path)
    with pytest.raises(ValueError, match=r"got train \(a link that leads nowhere\);"):
        check(path)


def one_chunk(group: h5py.Group, name: str) -> None:
    stored = group.create_dataset(name, (9, 60000, 60000, 3), "u1", chunks=(1, 60, 60, 3))
    stored[0, :60, :60] = 7


# What "imgs" is, and what the one line says of it.
ODD = {
    "group": (lambda group, name: group.create_group(name), "data set, got a group"),
    "cycle": (hard, "data set, got a group"),
    "dangling": (link(h5py.SoftLink("/nothing")), "data set, got a link that leads nowhere"),
    "loop": (link(h5py.SoftLink("/train/imgs")), "data set, got a link that leads nowhere"),
    "external": (link(h5py.ExternalLink("no.h5", "/x")), "data set, got a link that leads nowhere"),
    "not HDF5": (link(h5py.ExternalLink(__file__, "/x")), "data set, got a link that leads"),
    "type": (link(np.dtype("f4")), "data set, got a data type"),
    "no space": (link(h5py.Empty("f4")), "data set, got an empty data set"),
    "number": (link(5), r"imgs \[N, H, W, 1 or 3\], got \[\]"),
    "text": (link("hello"), "to hold numbers, got object"),
    "compound": (link(np.zeros((6, 5, 4, 3), [("r", "u1")])), "to hold numbers, got .*'r'"),
    "strings": (link(np.zeros((6, 5, 4, 3), "S2")), "to hold numbers, got |S2"),
    "complex": (link(np.zeros((6, 5, 4, 3), "c8")), "to hold numbers, got complex64"),
    "opaque": (link(np.zeros((6, 5, 4, 3), "V3")), "to hold numbers, got |V3"),
    "lists": (declared((6, 5, 4, 3), h5py.vlen_dtype("u1")), "to hold numbers, got object"),
    "references": (declared((6, 5, 4, 3), h5py.ref_dtype), "to hold numbers, got object"),
    "no images": (declared((0, 5, 4, 3), "u1"), r"imgs .*, got \[0, 5, 4, 3\]"),
    "no rows": (declared((6, 0, 4, 3), "u1"), r"imgs .*, got \[6, 0, 4, 3\]"),
    "nothing stored": (
        declared((9, 60000, 60000, 3), "u1"),
        r"/train/imgs declares \[9, 60000, 60000, 3\] of uint8, 97.2 GB, but only 0 bytes",
    ),
    "chunks": (
        declared((9, 60000, 60000, 3), "f4", chunks=(1, 60, 60, 3), compression="gzip"),
        "389 GB, but only 0 bytes are stored",
    ),
    "one chunk": (one_chunk, "97.2 GB, but only 10.8 kB are stored"),
    "far too many": (declared((10**15, 5, 4, 3), "u1", chunks=(1, 5, 4, 3)), "60 PB, but only 0"),
}  # fmt: skip


@pytest.mark.parametrize("function", [open_dataset, check], ids=["open", "check"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_images_are_one_line(function, odd, tmp_path):
    make, message = ODD[odd]
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        make(file.create_group("train"), "imgs")
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"a\.h5: .*{message}") as error:
        function(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert peak < 20e6, "no memory is taken before"


@pytest.mark.parametrize("name", ["masks", "factors"])
@pytest.mark.parametrize("odd", ["group", "dangling", "type", "no space", "text", "complex"])
def test_odd_companions_are_one_line(odd, name, tmp_path):
    make, _ = ODD[odd]
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train/imgs"] = IMAGES
        make(file["train"], name)
    with pytest.raises(ValueError, match=rf"a\.h5: expected /train/{name} to ") as error:
        open_dataset(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": np.zeros((6, 0, 5, 4, 1))}, "masks of 1 to 256 entities, got 0"),
        ({"masks": np.zeros((6, 257, 5, 4, 1), bool)}, "masks of 1 to 256 entities, got 257"),
        ({"factors": np.zeros((6, 0, 9))}, r"factors \[6, E, F\], got \[6, 0, 9\]"),
    ],
    ids=["no entity", "entities", "no factors"],
)
def test_impossible_entities_are_one_line(change, message, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, values in {"imgs": IMAGES, "masks": MASKS, **change}.items():
            file[f"train/{name}"] = values
    with pytest.raises(ValueError, match=rf"a\.h5: expected {message}"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([b"x", b"y"], None),
        (["x", "y", "z"], "expected 2 names of factors, got x, y, z"),
        ("xy", "expected 2 names of factors, got xy"),
        (h5py.Empty("S1"), "expected 2 names of factors, got "),
        (5, "expected 2 names of factors, got 5"),
    ],
    ids=["bytes", "three", "text", "empty", "number"],
)
def test_odd_names_of_factors_are_one_line(columns, message, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train/imgs"] = IMAGES
        file["train/factors"] = np.zeros((6, 2, 2))
        file["train/factors"].attrs["columns"] = columns
    if message is None:
        assert list(open_dataset(path)[0]["factors"]) == ["x", "y"]
    else:
        with pytest.raises(ValueError, match=rf"a\.h5: {message}"):
            open_dataset(path)


def test_a_factor_in_two_places_is_refused(tmp_path):
    """The second one once replaced the first."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train/imgs"] = IMAGES
        file["train/factors"] = np.zeros((6, 2, 3))
        file["train/factors"].attrs["columns"] = ["x", "y", "x"]
    with pytest.raises(ValueError, match="expected a factor's columns side by side, got x, y, x"):
        open_dataset(path)


def test_links_that_lead_somewhere_are_followed(tmp_path):
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["all"] = IMAGES
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train/imgs"] = h5py.ExternalLink("images.h5", "/all")
        file["val"] = h5py.SoftLink("/train")
        file["lost"] = h5py.SoftLink("/nothing")
    for split in ("train", "val"):
        image = open_dataset(path, split=split)[3]["image"]
        assert (image.permute(1, 2, 0).numpy() == IMAGES[3]).all()
    assert "train:\n" in check(path)
    with pytest.raises(ValueError, match=r"'test', got lost \(a link .* nowhere\), train/, val/"):
        open_dataset(path, split="test")


@pytest.mark.parametrize("split", ["", "/", ".", "..", "train/..", "../x", "/train", "a\nb", "~"])
def test_a_split_is_a_name(split, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train/imgs"] = IMAGES
        file["imgs"] = IMAGES
    for spec in (path, "tetrominoes", "tetrominoes-real10"):
        with pytest.raises(ValueError, match="split: expected a name of letters, "):
            open_dataset(spec, split=split)
    with pytest.raises(ValueError, match="split: expected a name of letters, "):
        convert(open_dataset(path), tmp_path / "b.h5", split=split)
    assert not (tmp_path / "b.h5").exists()


def test_records_with_other_numbers_of_entities_are_named(tmp_path):
    other = tiny(9)
    other |= {key: np.ones(3, np.float32) for key in ("x", "y", "shape", "visibility")}
    other |= {"mask": np.ones((3, 35, 35, 1), np.uint8), "color": np.ones((3, 3), np.float32)}
    path = tmp_path / "mixed"
    path.write_bytes(framed(serialised(tiny(8))) + framed(serialised(other)))
    dataset = open_dataset(path)
    with pytest.raises(
        ValueError, match=r"mixed: record 1: expected .*mask \[2, 35, 35\].* got .*\[3"
    ):
        dataset.__getitems__([0, 1])


def test_more_than_memory_is_refused_before_it_is_taken():
    for make, message in [
        (
            lambda: BatchSampler(2**31 - 1, 4, seed=1),
            "order of 2147483647 images would take 51.5 GB",
        ),
        (
            lambda: open_dataset("tetrominoes", size=10**6),
            "image of 1000000x1000000 would take 3 TB",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("chunks", "compression", "slow"),
    [
        ((1, 64, 64, 3), "gzip", False),
        ((4, 64, 64, 3), "gzip", False),
        ((1, 64, 64, 3), None, False),
        (None, None, False),
        ((9000, 64, 64, 3), None, False),
        ((9000, 4, 4, 1), "gzip", True),
        ((256, 64, 64, 3), "gzip", True),
        ((1, 1, 1, 3), None, True),
        ((1, 2, 2, 1), "gzip", True),
        (True, "gzip", True),
    ],
    ids=str,
)
def test_chunks_that_make_random_reads_slow_are_found(chunks, compression, slow, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        options = {"chunks": chunks, "compression": compression}
        images = file.create_dataset("imgs", (9000, 64, 64, 3), "u1", **options)
        masks = file.create_dataset("masks", (9000, 4, 64, 64, 1), "u1", chunks=(1, 4, 64, 64, 1))
        assert (slow_reads([images, masks]) is not None) == slow


def test_slow_files_are_told_and_converted(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        noise = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), np.uint8)
        images = noise.repeat(12, 1).repeat(12, 2)
        file.create_dataset("val/imgs", data=images, chunks=(400, 96, 96, 3), compression="gzip")
    line = open_dataset(path, split="val", limit=7).slow
    assert line.startswith(f"{path}: reading in random order takes about ")
    assert line.endswith(f"; store it again: emorl data convert {path} --out FILE.h5 --split val")
    assert f"\nslow: {line}\n" in check(path, 33)
    copy = convert(open_dataset(path, split="val"), tmp_path / "b.h5", split="val")
    assert open_dataset(copy, split="val").slow is None
    assert "slow" not in check(copy, 33)


def test_small_files_are_never_slow(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        images = np.arange(100, dtype=np.uint8).repeat(75).reshape(100, 5, 5, 3)
        file.create_dataset("train/imgs", data=images, chunks=(100, 1, 1, 1), compression="gzip")
    assert open_dataset(path).slow is None, "all of it stays in the cache"
