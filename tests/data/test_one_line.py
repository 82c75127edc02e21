"""Data that could mean several things, and odd names: each is asked about in one line."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from emorl.cli import main
from emorl.data import check, convert, open_dataset

IMAGES = np.random.default_rng(0).integers(1, 256, (6, 5, 4, 3), np.uint8)
MASKS = np.ones((6, 2, 5, 4, 1), np.uint8)
LABELS = np.ones((6, 5, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "names"),
    [
        ({"image": IMAGES, "images": 255 - IMAGES}, "images under one name, got image and images"),
        ({"imgs": IMAGES, "images": 255 - IMAGES}, "images under one name, got .*imgs"),
        ({"image": IMAGES, "mask": LABELS, "masks": MASKS}, "masks under one name, got .*mask"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_two_names_of_one_thing_are_asked_about(
    kind: str, arrays: dict[str, np.ndarray], names: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[f"train/{name}"] = array
    with pytest.raises(ValueError, match=rf"a\.{kind}: expected {names}.*; which are meant\? ren"):
        open_dataset(path)


def test_labels_of_images_are_a_factor_beside_masks(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=IMAGES, labels=LABELS, label=np.arange(6))
    sample = open_dataset(tmp_path / "a.npz")[5]
    assert sample["mask"].unique().tolist() == [1]
    assert sample["factors"]["label"].tolist() == [5]


@pytest.mark.parametrize("second", ["image.npy", "image"])
def test_an_array_that_is_twice_in_an_archive_is_refused(second: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, image=IMAGES)
    np.save(tmp_path / "other.npy", 255 - IMAGES)
    with zipfile.ZipFile(path, "a") as archive, pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.warn", lambda *_, **__: None)  # zipfile's, of the name
        archive.write(tmp_path / "other.npy", second)
    with pytest.raises(ValueError, match=r"a\.npz: expected each array once, got several image"):
        open_dataset(path)


@pytest.mark.parametrize("split", [None, 5, b"train", ["train"]])
def test_a_split_is_text(split: Any) -> None:
    with pytest.raises(ValueError, match="split: expected a name of letters, digits"):
        open_dataset("tetrominoes", split=split)


@pytest.mark.parametrize("spec", [None, b"a.h5", ["tetrominoes"], 5])
def test_a_spec_is_a_name_or_a_path(spec: Any) -> None:
    with pytest.raises(ValueError, match="spec: expected a generator's name or a path, got"):
        open_dataset(spec)


def test_names_that_are_no_text_are_escaped(tmp_path: Path, capsys: Any) -> None:
    """A message has one line, and a conversion ends well."""
    path, out = tmp_path / "a.h5", tmp_path / "b.h5"
    with h5py.File(path, "w") as file:
        for name in ("train", b"\xff\xfe", "a\nb"):
            file.create_group(name)["imgs"] = IMAGES
    assert main(["data", "convert", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith("; not stored: a\\nb, \\xff\\xfe\n")
    assert main(["data", "check", str(path)]) == 1
    report = capsys.readouterr().out
    assert "a\\nb:\ncannot be checked: split: expected a name of letters" in report
    assert "train:\na: 6 images" in report
    with pytest.raises(ValueError, match=r"got a\\nb/, train/, \\xff\\xfe/;") as refused:
        open_dataset(path, split="test")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", ["S1", h5py.string_dtype()])
def test_columns_that_are_no_text_are_escaped(dtype: Any, tmp_path: Path) -> None:
    """Two of them stay two."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train/imgs"], file["train/masks"] = IMAGES, MASKS
        file["train/factors"] = np.ones((6, 2, 2), np.float32)
        file["train/factors"].attrs.create("columns", [b"\xff", b"\xfe"], dtype=dtype)
    names = open_dataset(path)[:1].factors
    assert len(names) == 2
    assert all(name.isprintable() for name in names)
    check(path)
    assert open_dataset(convert(open_dataset(path), tmp_path / "b.h5"))[:1].factors.keys() == {
        *names
    }
