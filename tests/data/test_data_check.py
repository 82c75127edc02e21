"""What `emorl data check` says beyond problems, which tests/data/test_hdf5.py has."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from layout_testing import HDF5
from own_files_writing import OWN
from PIL import Image
from record_writing import TFRECORDS

from emorl.cli import main
from emorl.data import GENERATORS, check, open_dataset, splits
from emorl.data.check import open_checked, readable, splits_of
from emorl.data.generators.tetromino_shapes import FRAME
from emorl.data.problems import objects
from emorl.data.problems import pixels as pixels_of
from emorl.data.questions import answers

N = 400


def multi_dsprites() -> dict[str, torch.Tensor]:
    """Factors as the facts give them: a background and five sprites, of which two are there."""
    torch.manual_seed(0)
    color = torch.rand(N, 6, 3) / 2 + 0.5
    color[:, 1:, 0] = 1
    color[:, 1:, 1] = 0.5
    color[:, 0] = torch.rand(N, 1)
    visibility = torch.tensor([1.0, 1, 1, 0, 0, 0]).repeat(N, 1)
    shape = torch.tensor([0.0, 1, 2, 0, 0, 0]).repeat(N, 1)
    ones = torch.ones(N, 6)
    return {
        "color": color,
        "visibility": visibility,
        "shape": shape,
        "scale": ones,
        "orientation": ones,
        "x": ones,
        "y": ones,
    }


def pixels(*areas: int) -> torch.Tensor:
    """Of each label; the first image's first sprite is hidden."""
    counts = torch.zeros(N, 256, dtype=torch.int64)
    counts[:, 1 : 1 + len(areas)] = torch.tensor(areas)
    counts[0, 1] = 0
    return counts


def failed(factors: dict[str, torch.Tensor], counts: torch.Tensor | None = None) -> list[str]:
    found = answers(factors, counts, (64, 64) if "scale" in factors else (35, 35))
    assert len(found) >= 2
    return [line.removeprefix("FAIL ") for line in found if line.startswith("FAIL")]


def test_questions_of_multi_dsprites():
    factors = multi_dsprites()
    assert failed(factors, pixels(300, 289)) == []
    assert failed(factors, pixels(300, 150)) == [
        "the last sprite lies on top: 0.52 of its area at least"
    ]
    seen = pixels(300, 289)
    seen[0, 1] = 1
    assert failed(factors, seen) == [
        "a sprite may be hidden altogether: so in 0 images, usually in 8.0"
    ]
    assert not any("lies on top" in line for line in answers(factors, pixels(9, 9), (32, 32)))
    factors["color"][7, 2] = torch.tensor([0.4, 0.3, 0.3])
    factors["color"][:, 0] *= 0.7
    dark, grey = failed(factors)
    assert dark == "sprites have saturation and value from 0.5 on: at least 0.250 and 0.400"
    assert grey.startswith("grey levels are uniform from 0 to 1: Kolmogorov-Smirnov distance 0.3")


def test_white_sprites_on_black_are_not_asked_for_colours():
    factors = multi_dsprites()
    factors["color"][:] = torch.tensor([0.0, 1, 1, 0, 0, 0])[:, None]
    assert failed(factors, pixels(300, 289)) == []


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_are_as_is_believed(name):
    """What we make ourselves has no problem, CLEVR's in the size of Tetrominoes neither."""
    is_clevr = name.startswith("clevr")
    report = check(name, 2 if is_clevr else 300, size=FRAME if is_clevr else None)
    assert "FAIL" not in report
    assert ("PASS" in report) != (name == "clevrtex-like")
    assert report.endswith("problems: none")


def test_questions_of_tetrominoes():
    torch.manual_seed(0)
    batch = open_dataset("tetrominoes")[:N]
    assert failed(batch.factors) == []
    apart = {
        name: values[:1].repeat(N, *[1] * (values.dim() - 1))
        for name, values in batch.factors.items()
    }
    assert any("of pairs touch" in line for line in failed(apart))
    batch.factors["shape"][0, 1] = 25
    assert "shapes from 1 to 19" in failed(batch.factors)[0]
    assert answers(batch.factors, None, (9, 8)) == []  # another file's, of the same names


def test_questions_of_clevr(tmp_path):
    """Its random codes and heights are not CLEVR's."""
    TFRECORDS["CLEVR with masks"](tmp_path / "a")
    factors = open_dataset(tmp_path / "a")[:].factors
    assert {line.split(":")[0] for line in failed(factors)} == {
        "codes of size from 1 to 2",
        "codes of material from 1 to 2",
        "codes of shape from 1 to 3",
        "codes of color from 1 to 8",
        "z is 0.7 of large and 0.35 of small objects",
    }
    for name, most in {"size": 2, "material": 2, "shape": 3, "color": 8}.items():
        factors[name] = (torch.arange(11.0) % most + 1)[None]
    factors["z"] = torch.where(factors["size"] == 1, 0.7, 0.35)
    assert failed(factors) == []
    factors["visibility"][0, 2] = 0
    assert failed(factors) == ["background first, null entities last: in 0 of 1 images"]


def clevr_file(path: Path, factors: np.ndarray) -> Path:
    """White images in CLEVR's layout, with masks that are all background."""
    count, entities, _ = factors.shape
    with h5py.File(path, "w") as file:
        file["train/imgs"] = np.full((count, 4, 4, 3), 255, np.uint8)
        masks = np.zeros((count, entities, 4, 4, 1), np.uint8)
        masks[:, 0] = 255
        file["train/masks"] = masks
        file["train/factors"] = factors
    return path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e300])
def test_images_with_a_factor_that_is_not_finite_are_not_asked(value, tmp_path):
    factors = np.ones((3, 4, 9))
    factors[1] = value
    path = clevr_file(tmp_path / "a.h5", factors)
    report = check(path)
    for name in open_dataset(path)[:].factors:
        assert f"  factor {name} is not finite: 1 of 3 images" in report
    assert "PASS codes of shape from 1 to 3: 1 to 1" in report
    path.unlink()
    report = check(clevr_file(path, np.full((3, 4, 9), value)))
    assert "factor z is not finite: 3 of 3 images" in report
    assert "codes of" not in report


def test_images_without_objects_are_not_asked_for_their_codes(tmp_path):
    report = check(clevr_file(tmp_path / "a.h5", np.zeros((3, 4, 9))))
    assert "FAIL 3 to 10 objects, as all of CLEVR: 0 to 0" in report
    assert "codes of" not in report


@pytest.mark.parametrize(
    ("layout", "lines"),
    [
        ("EfficientMORL", ["layout: EfficientMORL's files", "masks: PASS, they cover each pixel"]),
        ("EfficientMORL", ["as published?\n  PASS imgs and masks are bytes: uint8 and uint8\n"]),
        ("object-centric-library", ["masks: a label for each pixel", "mask uint8 [6, 9, 8, 1]"]),
        ("multi_object_datasets_torch", ["chunks [1, 3, 9, 8], deflate", "factors: color [3, 3]"]),
        ("dSprites", ["from 0 to 1 (as dSprites' file holds them; stored as uint8)"]),
        ("CATER", ["TFRecord, cater, 11 entities; a file, in memory"]),
        ("Multi-dSprites, binarized", ["multi-dsprites binarized, 4 entities", "as published?\n"]),
    ],
)  # fmt: skip
def test_it_says_what_a_file_is(layout, lines, tmp_path):
    path = tmp_path / "a"
    {**HDF5, **TFRECORDS}[layout](path)
    report = check(path, 3)
    for line in [*lines, "speed: ", "images/s one by one"]:
        assert line in report


@pytest.mark.parametrize(
    ("layout", "count"),
    [("ClevrTex", 10), ("object-centric-library", 6), ("Tetrominoes", 3), ("dSprites", 6)],
)
def test_all_images_are_checked_whatever_their_split(layout, count, tmp_path, monkeypatch):
    for name in ("tetrominoes", "object-centric-library's files"):
        monkeypatch.setitem(splits._PUBLISHED, name, (("train", 2), ("test", 1)))
    path = tmp_path / "a"
    {**HDF5, **TFRECORDS, **OWN}[layout](path)
    assert splits_of(path) == ["all"]
    report = check(path, 100)
    assert f"{count} images, " in report
    assert f"; checked {count}\n" in report


def test_a_fault_in_a_folder_s_test_pictures_is_found(tmp_path):
    for split in ("train", "test"):
        place = tmp_path / split / "a.png"
        place.parent.mkdir()
        Image.fromarray(np.eye(4, dtype=np.uint8) * 9 * (split == "train")).save(place)
    assert "a single colour: 1 of 2 images" in check(tmp_path)


def test_all_pictures_that_cannot_be_read_are_listed(tmp_path, capsys):
    """And the others are described, and drawn, whether the first are damaged or later ones."""
    folder, sheet = tmp_path / "pictures", tmp_path / "sheet.png"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        picture = rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    (folder / "00.png").write_bytes(b"no picture")
    os.truncate(folder / "35.png", 60)
    assert main(f"data check {folder} --sheet {sheet}".split()) == 1
    report = capsys.readouterr().out
    assert "40 images, 6x6 pixels; checked 38\n" in report
    listed = report.partition("problems:\n")[2].splitlines()[:3]
    assert listed[0] == "  cannot be read: 2 of 40 images; mend or remove:"
    assert [line.split(":")[0].strip() for line in listed[1:]] == [
        str(folder / "00.png"),
        str(folder / "35.png"),
    ]
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_a_sheet_shows_the_first_pictures_that_can_be_read(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.png").write_bytes(b"no picture")
    for number in (12, 14, 15):
        Image.fromarray(np.eye(6, dtype=np.uint8) * number).save(folder / f"{number:02}.png")
    dataset = open_checked(folder, "all", value_range=None, crop=None, size=None)
    assert readable(dataset, 8) == [12, 13, 14]
    assert readable(dataset, 2) == [12, 13]
    sheet = tmp_path / "sheet.png"
    assert main(f"data check {folder} --sheet {sheet}".split()) == 1
    assert sheet.is_file()


def test_a_picture_of_another_size_is_listed_with_the_option_that_resizes_it(tmp_path):
    for number, side in enumerate((6, 6, 7, 6)):
        Image.fromarray(np.eye(side, dtype=np.uint8) * 9).save(tmp_path / f"{number}.png")
    report = check(tmp_path)
    assert "checked 3\n" in report
    assert (
        "2.png: expected 6x6 pixels as the first picture has, got 7x7; data.size (--size)" in report
    )


def test_a_long_list_of_what_cannot_be_read_ends(tmp_path):
    Image.fromarray(np.eye(6, dtype=np.uint8) * 9).save(tmp_path / "good.png")
    for number in range(120):
        (tmp_path / f"{number:03}.png").write_bytes(b"no picture")
    report = check(tmp_path)
    assert "cannot be read: 120 of 121 images" in report
    assert report.endswith("\n    and 20 more")
    assert report.count("not a picture") == 100


def test_label_maps_and_descriptions_that_cannot_be_read_are_listed(tmp_path):
    OWN["ClevrTex"](tmp_path / "a")
    descriptions = sorted(tmp_path.rglob("*.json"))
    maps = sorted(tmp_path.rglob("*_flat.png"))
    descriptions[0].write_text("[")
    maps[1].write_bytes(b"no picture")
    report = check(tmp_path / "a")
    assert f"  cannot be read: 2 of {len(maps)} images" in report
    assert str(descriptions[0]) in report
    assert str(maps[1]) in report


def test_an_image_of_a_file_that_is_not_in_its_range_is_listed(tmp_path):
    images = np.random.default_rng(0).random((90, 6, 6, 3), np.float32)
    images[80, 0] = np.nan
    np.save(tmp_path / "a.npy", images)
    report = check(tmp_path / "a.npy")
    assert "checked 89\n" in report
    assert "cannot be read: 1 of 90 images" in report
    assert "image 80: " in report


def test_where_nothing_can_be_read_one_line_says_why(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png: not a picture"):
        check(tmp_path)


def test_other_files_of_a_folder_are_counted(tmp_path):
    for name in ("a.png", "b.gif", "c/d.GIF", "e.tiff", "README", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.eye(4, dtype=np.uint8) * 9).save(tmp_path / name, format="PNG")
    assert "passed over: 2 .gif, 1 .tiff, 1 other\n" in check(tmp_path)
    for number in range(9):
        (tmp_path / f"1.2.840.{number}").touch()
        (tmp_path / f"x.end{number}").touch()
    (tmp_path / "x.g\nif").touch()
    told = "2 .gif, 1 .end0, 1 .end1, 1 .end2, 1 .end3, 17 others"
    assert f"passed over: {told}\n" in check(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"without pictures .*; it holds 2 \.gif, 1 \.end0"):
        check(tmp_path)


def test_what_is_wrong_comes_with_the_cure(tmp_path):
    path = tmp_path / "a.h5"
    HDF5["EfficientMORL"](path)
    with h5py.File(path, "a") as file:
        file["train/masks"][0, 0] = 0
        file["train/imgs"][1] = np.uint8(9)
    report = check(path)
    assert "masks: FAIL, pixels that no mask covers\n" in report
    assert "  pixels that no mask covers: 1 of 6 images; they count as background; store" in report
    assert "  a single colour: 1 of 6 images; leave these images out" in report


def test_groups_without_images_are_no_splits(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for split in ("train", "val"):
            file[f"{split}/imgs"] = np.full((3, 5, 4, 3), 200, np.uint8)
        file["metadata/x"] = np.zeros(3)
    assert splits_of(path) == ["train", "val"]
    assert "metadata" not in check(path)


def test_large_labels_take_no_memory_of_their_own(tmp_path):
    labels = np.random.default_rng(0).integers(1, 2**31 - 1, (3, 8, 8), np.int32)
    labels[0] = 0
    mask = torch.from_numpy(labels)[:, None]
    assert pixels_of(mask).shape == (3, 257)
    assert objects(mask) == [0, 64, 64]
    np.savez(tmp_path / "a.npz", images=labels.astype(np.uint8)[..., None], masks=labels)
    assert "objects: 0 in 1 image, 64 in 2 images (with" in check(tmp_path / "a.npz")


@pytest.mark.parametrize("asked", [False, True])
def test_a_visibility_of_several_numbers(asked, tmp_path):
    """An entity is there if one of them is positive."""
    visibility = np.zeros((2, 3, 2), np.float32)
    visibility[:, :, 1] = 1
    labels = np.zeros((2, 64, 64), np.uint8)
    labels[:, 0] = 1
    names = multi_dsprites().keys() - {"visibility"} if asked else ()
    others = {name: np.ones((2, 3), np.float32) for name in names}
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, masks=labels, visibility=visibility, **others)
    report = check(tmp_path / "a.npz")
    assert "hidden: an object or more in 2 images" in report
    assert report.endswith("problems: none")


def test_names_keep_to_their_lines(tmp_path):
    folder = tmp_path / "a\nb"
    folder.mkdir()
    Image.fromarray(np.eye(4, dtype=np.uint8) * 9).save(folder / "a.png")
    (folder / "c\nd.png").write_bytes(b"no")
    first, *_, last = check(folder).splitlines()
    assert first.startswith("a\\nb: 2 images")
    assert last.startswith(f"    {tmp_path}/a\\nb/c\\nd.png: not a picture")


def test_a_group_that_cannot_be_checked_hides_no_other(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train/imgs"] = np.full((3, 5, 4, 3), np.nan, np.float32)
        file["val/imgs"] = np.full((3, 5, 4, 3), 200, np.uint8)
    train, val = check(path).split("\n\n")
    assert train.startswith(f"train:\ncannot be checked: {path}: ")
    assert val.startswith("val:\na: 3 images")
    with h5py.File(path, "a") as file:
        del file["val"]
    with pytest.raises(ValueError, match=r"a\.h5: "):
        check(path)
