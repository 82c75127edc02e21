"""`emorl segment` on folders and single pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from emorl.cli import main

MODEL = "tetrominoes-laptop"


def segment(pictures, out) -> int:
    return main(["segment", MODEL, str(pictures), "--out", str(out)])


def test_a_single_picture_is_segmented(tmp_path, capsys):
    Image.new("RGB", (50, 20), "red").save(tmp_path / "photo.jpg")
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    out = tmp_path / "out"
    assert segment(tmp_path / "photo.jpg", out) == 0
    assert "written: 1 picture, in" in capsys.readouterr().out
    made = sorted(str(path.relative_to(out)) for path in out.rglob("*.png"))
    assert made == ["contact.png", "labels/photo.jpg.png", "overlays/photo.jpg.png"]


def test_other_files_of_a_folder_are_told(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (9, 9), "red").save(folder / "a.png")
    (folder / "b.gif").touch()
    assert segment(folder, tmp_path / "out") == 0
    assert "written: 1 picture, passed over: 1 .gif, in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("picture", "out", "message"),
    [
        ("none.png", "out", "none.png: expected a folder of pictures or a picture, got neither"),
        ("bad.png", "out", "bad.png: not a picture (PNG, JPEG, WEBP, BMP)"),
        ("labels/a.png", ".", "--out: expected a folder apart from the pictures"),
    ],
)
def test_a_wrong_picture_is_refused_in_one_line(tmp_path, capsys, picture, out, message):
    (tmp_path / "bad.png").write_bytes(b"no")
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "labels/a.png")
    before = sorted(tmp_path.rglob("*"))
    assert segment(tmp_path / picture, tmp_path / out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_contact_sheet_names_its_pictures(tmp_path):
    """The same pictures under other names, some of which are hostile, change the text alone."""
    sheets = []
    for names in (["1.png", "2.png", "3.png"], ["a\nb.png", 50 * "long" + ".png", "\u732b.png"]):
        folder = tmp_path / str(len(sheets))
        folder.mkdir()
        for name, colour in zip(names, ("red", "green", "blue"), strict=True):
            Image.new("RGB", (35, 35), colour).save(folder / name)
        assert segment(folder, tmp_path / f"out-{folder.name}") == 0
        with Image.open(tmp_path / f"out-{folder.name}/contact.png") as sheet:
            sheets.append(np.asarray(sheet))
    first, second = sheets
    assert first.shape == second.shape
    changed = np.flatnonzero((first != second).any(axis=(1, 2)))
    assert changed.size
    assert changed.min() >= 160
