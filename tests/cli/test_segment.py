"""`emorl segment` on folders and single pictures."""

from __future__ import annotations

import shutil

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


def refused(pictures, out, capsys) -> str:
    """The line by which a folder is refused; nothing is written or replaced."""
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    assert segment(pictures, out) == 2
    assert {path: path.read_bytes() for path in before} == before
    assert len([path for path in out.parent.rglob("*") if path.is_file()]) == len(before)
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_links_between_pictures_and_results_lose_nothing(tmp_path, capsys):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    Image.new("RGB", (9, 9), "red").save(pictures / "a.png")
    assert segment(pictures, out) == 0
    capsys.readouterr()
    for link, target in (
        (pictures / "b.png", out / "overlays/b.png"),
        (out / "labels/a.png", pictures / "a.png"),
    ):
        shutil.copy(out / "overlays/a.png", target)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert "apart from the pictures, got" in refused(pictures, out, capsys)
        link.unlink()


def test_two_results_in_one_place_are_refused(tmp_path, capsys):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    (pictures / "x.jpg.png").mkdir(parents=True)
    (out / "overlays").mkdir(parents=True)
    for name in ("x.jpg", "x.jpg.png/y.png"):
        Image.new("RGB", (9, 9), "red").save(pictures / name)
    assert "x.jpg: expected another name, its results would be" in refused(pictures, out, capsys)
    (out / "labels").symlink_to("overlays")
    line = refused(pictures / "x.jpg", out, capsys)
    assert "--out: expected different files, got one: " in line
    assert line.endswith("out/labels/x.jpg.png and " + str(out / "overlays/x.jpg.png"))


def test_a_name_without_room_for_an_ending_is_left_out(tmp_path, capsys):
    names = [250 * "x" + ".png", "a.png"]
    for name in names:
        Image.new("RGB", (9, 9), "red").save(tmp_path / name)
    assert segment(tmp_path, tmp_path.with_name("out")) == 0
    printed = capsys.readouterr()
    assert f"left out: {tmp_path / names[0]}: expected a name of up to" in printed.err
    assert "written: 1 picture, 1 left out" in printed.out
    assert segment(tmp_path / names[0], tmp_path.with_name("out")) == 2


def test_a_line_break_in_a_name_stays_in_the_line(tmp_path, capsys):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    (tmp_path / "b\nc.png").write_bytes(b"no")
    assert segment(tmp_path, tmp_path.with_name("out")) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "b\\nc.png: not a picture" in line
