"""HDF5 data sets whose numbers lie elsewhere: what is missing there is not read as black."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from emorl.data import ObjectDataset, open_dataset

IMAGES = np.random.default_rng(0).integers(1, 256, (12, 5, 4, 3), np.uint8)
MASKS = np.random.default_rng(1).integers(0, 2, (12, 2, 5, 4, 1), np.uint8)
UNLIMITED = h5py.h5s.UNLIMITED


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with h5py.File("source.h5", "w") as file:
        file["x"], file["m"] = IMAGES, MASKS


def virtual(
    path: str, name: str, source: tuple[str, str], rows: list[slice], numbers: np.ndarray = IMAGES
) -> None:
    """A virtual data set, of which `rows` are the source's."""
    layout = h5py.VirtualLayout(numbers.shape, "u1")
    stored = h5py.VirtualSource(*source, shape=numbers.shape)
    for part in rows:
        layout[part] = stored[part]
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset(name, layout)


def raw(path: str, parts: list[tuple[str, int, int]]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("train/imgs", IMAGES.shape, "u1", external=parts, data=IMAGES)


ALL, EVEN, ODD, HALF = slice(0, 12), slice(0, 12, 2), slice(1, 12, 2), slice(0, 6)
BYTES = IMAGES.nbytes


def of_images(rows: list[slice]) -> None:
    virtual("a.h5", "train/imgs", ("source.h5", "x"), rows)


def of_masks(rows: list[slice]) -> None:
    with h5py.File("a.h5", "w") as file:
        file["train/imgs"] = IMAGES
    virtual("a.h5", "train/masks", ("source.h5", "m"), rows, MASKS)


def of_another(source: str) -> None:
    virtual("b.h5", "y", (source, "x"), [ALL])
    virtual("a.h5", "train/imgs", ("b.h5", "y"), [ALL])


def of_the_same_file(written: int) -> None:
    with h5py.File("a.h5", "w") as file:
        stored = file.create_dataset("x", IMAGES.shape, "u1", chunks=(1, 5, 4, 3))
        for i in range(written):
            stored[i] = IMAGES[i]
    virtual("a.h5", "train/imgs", (".", "x"), [ALL])


def of_fewer() -> None:
    with h5py.File("b.h5", "w") as file:
        file["x"] = IMAGES[:5]
    virtual("a.h5", "train/imgs", ("b.h5", "x"), [ALL])


def of_nothing_written() -> None:
    with h5py.File("b.h5", "w") as file:
        file.create_dataset("x", IMAGES.shape, "u1")
    virtual("a.h5", "train/imgs", ("b.h5", "x"), [ALL])


def of_a_short_file(missing: int) -> None:
    raw("a.h5", [("a.bin", 7, 100), ("b.bin", 0, BYTES)])
    with Path("b.bin").open("r+b") as file:
        file.truncate(BYTES - 100 - missing)


def of_no_file() -> None:
    raw("a.h5", [("a.bin", 0, BYTES)])
    Path("a.bin").unlink()


LYING: dict[str, tuple[Callable[[], None], str]] = {
    "half": (lambda: of_images([HALF]), "imgs: its sources hold 360 of 720 numbers; the others"),
    "half twice": (lambda: of_images([HALF, HALF]), "its sources hold 360 of 720 numbers"),
    "even rows": (lambda: of_images([EVEN]), "its sources hold 360 of 720 numbers"),
    "half masks": (lambda: of_masks([HALF]), "masks: its sources hold 6 of 12 entries; the oth"),
    "another's is gone": (lambda: of_another("no.h5"), r"/y: expected its source .*no\.h5, got no"),
    "its own is not written": (lambda: of_the_same_file(0), "/x: 0 of 12 chunks are stored; the"),
    "its own is partly written": (lambda: of_the_same_file(11), "/x: 11 of 12 chunks are stored"),
    "itself": (
        lambda: virtual("a.h5", "train/imgs", ("a.h5", "train/imgs"), [ALL]),
        "expected sources other than itself",
    ),
    "fewer images": (of_fewer, r"expected x of at least \[12, 5, 4, 3\] .*, got \[5, 5, 4, 3\]"),
    "nothing written": (of_nothing_written, "/x: 0 bytes of 720 bytes are stored"),
    "short": (lambda: of_a_short_file(1), r"expected 620 bytes in its raw file b\.bin, got 619"),
    "no raw file": (of_no_file, r"expected its raw file a\.bin, got no such file"),
}


@pytest.mark.parametrize("kind", LYING)
def test_what_sources_lack_is_told(kind: str) -> None:
    write, message = LYING[kind]
    write()
    with pytest.raises(ValueError, match=rf"^a\.h5: .*{message}") as refused:
        open_dataset("a.h5")
    assert "\n" not in str(refused.value)


WHOLE: dict[str, Callable[[], None]] = {
    "all": lambda: of_images([ALL]),
    "even and odd rows": lambda: of_images([EVEN, ODD]),
    "another": lambda: of_another("source.h5"),
    "the same file": lambda: of_the_same_file(12),
    "raw files": lambda: of_a_short_file(0),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_sources_hold_is_read(kind: str) -> None:
    WHOLE[kind]()
    assert read(open_dataset("a.h5"))


def read(dataset: ObjectDataset) -> bool:
    """Whether the images are those that were written."""
    return bool((dataset[:].image.permute(0, 2, 3, 1).numpy() == IMAGES).all())


def test_a_source_that_grows_is_read() -> None:
    layout = h5py.VirtualLayout(IMAGES.shape, "u1", maxshape=(None, 5, 4, 3))
    source = h5py.VirtualSource("source.h5", "x", IMAGES.shape, maxshape=(None, 5, 4, 3))
    layout[0:UNLIMITED] = source[0:UNLIMITED]
    with h5py.File("a.h5", "w") as file:
        file.create_virtual_dataset("train/imgs", layout)
    assert read(open_dataset("a.h5"))


def test_sources_are_found_where_hdf5_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the file, also where a link to it is opened; or in HDF5's own folder for them."""
    of_images([ALL])
    links = tmp_path / "links"
    links.mkdir()
    (links / "a.h5").symlink_to(tmp_path / "a.h5")
    monkeypatch.chdir("/")
    assert read(open_dataset(links / "a.h5"))
    (tmp_path / "there").mkdir()
    (tmp_path / "source.h5").rename(tmp_path / "there/source.h5")
    program = "from emorl.data import open_dataset; print(open_dataset('a.h5')[:].image.min())"
    environment = {**os.environ, "HDF5_VDS_PREFIX": "${ORIGIN}/there"}  # read at HDF5's start
    line = [sys.executable, "-c", program]
    printed = subprocess.run(line, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE)
    assert printed.stdout == f"tensor({IMAGES.min()}, dtype=torch.uint8)\n"
    with pytest.raises(ValueError, match=r"expected its source .*source\.h5, got no such file"):
        open_dataset(tmp_path / "a.h5")


def test_all_files_of_sources_are_the_data_s(tmp_path: Path) -> None:
    of_another("source.h5")
    found = {path.resolve().name for path in open_dataset("a.h5").files()}
    assert found == {"a.h5", "b.h5", "source.h5"}
    raw("c.h5", [("a.bin", 0, BYTES)])
    assert [*open_dataset("c.h5").files()] == [Path("a.bin"), Path("c.h5")]


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_masks_may_lack_entities_compressed_or_not(compression: str | None) -> None:
    """Not so images, nor parts of a label map."""
    with h5py.File("a.h5", "w") as file:
        file["train/imgs"] = IMAGES
        shape, chunks = (12, 9, 5, 4, 1), (1, 1, 5, 4, 1)
        masks = file.create_dataset(
            "train/masks", shape, "u1", chunks=chunks, compression=compression
        )
        masks[:, :1] = 255
    assert open_dataset("a.h5")[2]["mask"].unique().tolist() == [0]
    with h5py.File("a.h5", "a") as file:
        del file["train/masks"]
        masks = file.create_dataset("train/masks", (12, 5, 4), "u1", chunks=(1, 1, 4))
        masks[:, :1] = 1
    with pytest.raises(ValueError, match=r"a\.h5: /train/masks"):
        open_dataset("a.h5")


@pytest.mark.parametrize(
    "labels", [2**31 + 1, 2**40, 0, -3, 2.5, "three", [3, 4], h5py.Empty("i4")]
)
def test_an_attribute_of_labels_is_a_number_of_them(labels: object) -> None:
    """Larger labels would have wrapped: 2**32 + 1 became 1."""
    with h5py.File("a.h5", "w") as file:
        file["train/image"] = IMAGES
        numbers = np.zeros((12, 5, 4), np.int64)
        numbers[:, 0], numbers[:, 1] = 1, 2**32 + 1
        file["train/mask"] = numbers
        file["train/mask"].attrs["labels"] = labels
    with pytest.raises(ValueError, match=r"^a\.h5: expected the attribute labels of /train/mask"):
        open_dataset("a.h5")
    with h5py.File("a.h5", "a") as file:
        file["train/mask"].attrs["labels"] = 2**31
    with pytest.raises(
        ValueError, match=r"expected labels from 0 to 2147483647, got 0 to 42949672"
    ):
        open_dataset("a.h5")[0]
