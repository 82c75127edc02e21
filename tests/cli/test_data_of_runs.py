"""What the command line says about the data of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

from emorl.cli import main
from emorl.data import open_dataset

SHORT = "--trainer.steps 1 --trainer.eval_every 0 --trainer.picture_every 0 --trainer.batch_size 2"


def test_records_that_were_trained_on_are_not_called_test(
    fixtures_dir, tmp_path, monkeypatch, capsys
):
    """From any folder, although the run began with a relative path."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(fixtures_dir / "data/tetrominoes_mini.tfrecords", "a.tfrecords")
    run = tmp_path / "run"
    assert main(f"train --config smoke --data.train a.tfrecords --out {run} {SHORT}".split()) == 0
    data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert data["train"] == str(tmp_path / "here/a.tfrecords")
    assert data["value_range"] == [0, 255]
    monkeypatch.chdir(tmp_path / "there")
    longer = f"train --out {run} --resume auto {SHORT}".replace("steps 1", "steps 2")
    assert main(longer.split()) == 0
    assert "changed since the run began: data." not in capsys.readouterr().err
    for spec in ("../here/a.tfrecords", "tetrominoes-real10"):  # the same ten, from elsewhere
        assert main(["evaluate", str(run), "--data", spec, "--images", "4"]) == 0
        printed = capsys.readouterr().out
        assert f"{spec} (train): 4 images" in printed
        assert "note: the run was trained on these images" in printed
        stem = Path(spec).name.partition(".")[0]
        stored = json.loads((run / f"evaluation/{stem}-train.json").read_text())
        assert stored["split"] == "train"
    drawn = ["--images", "1", "--measured", "2", "--values", "2", "--dimensions", "1"]
    assert main(["traverse", str(run), "--data", "tetrominoes-real10", *drawn]) == 0
    assert json.loads((run / "traversals/traversals.json").read_text())["split"] == "train"
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", "tetrominoes", "--images", "4"]) == 0
    printed = capsys.readouterr().out
    assert "tetrominoes (test): 4 images" in printed
    assert "trained on" not in printed


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """Images from 0 to 255 as floats, which do not say so."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train/imgs"] = np.random.default_rng(0).integers(2, 256, (9, 8, 8, 3)).astype("f4")
    return path


def test_a_range_is_given_to_check_and_convert(floats, tmp_path, capsys):
    assert main(["data", "check", str(floats)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{floats}: image 0: expected values from 0 to 1 (stored as float32), got 2 to" in error
    out = tmp_path / "b.h5"
    assert main(["data", "convert", str(floats), "--out", str(out)]) == 2
    assert not out.exists()
    for given in ("[0,255]", "[0, 255]", "0,255"):
        assert main(["data", "check", str(floats), "--value-range", given, "--all"]) == 0
    assert "checked 9\n" in capsys.readouterr().out
    line = ["data", "convert", str(floats), "--out", str(out), "--value-range", "[0,255]"]
    assert main(line) == 0
    assert main(["data", "check", str(out)]) == 0


def test_pictures_of_mixed_sizes_are_checked_and_converted(tmp_path, capsys):
    """As a run would train on them; of files no crop or size is taken, but for converting."""
    folder, out = tmp_path / "pictures", tmp_path / "a.h5"
    folder.mkdir()
    for name, shape in {"a": (12, 20), "b": (20, 12)}.items():
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    check = ["data", "check", str(folder)]
    assert main(check) == 1
    assert "data.size (--size) resizes all to the same" in capsys.readouterr().out
    assert main([*check, "--size", "[8,10]"]) == 0
    assert "2 images, 8x10 pixels; checked 2\n" in capsys.readouterr().out
    assert main([*check, "--crop", "[1, 9, 2, 12]"]) == 0
    assert "8x10 pixels" in capsys.readouterr().out
    line = ["--crop", "centre", "--size", "8", "--split", "all", "--out", str(out)]
    assert main(["data", "convert", str(folder), *line]) == 0
    assert main(["data", "check", str(out)]) == 0
    assert "2 images, 8x8 pixels" in capsys.readouterr().out
    assert main(["data", "check", str(out), "--size", "4"]) == 2
    assert "checked as it is stored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--crop", "middle"],
            "--crop: expected clevr, clevr-bilinear, clevrtex, centre or [",
        ),
        (["--crop", "[1,2,3]"], "_COLUMN,COLUMN_AFTER], got '[1,2,3]'"),
        (["--crop", "[5,2,0,1]"], "crop: expected [FIRST_ROW, ROW_AFTER, "),
        (["--size", "0"], "--size: expected a side or [HEIGHT,WIDTH], each at least 1, got '0'"),
        (["--size", "[4,x]"], "--size: expected a side or [HEIGHT,WIDTH], each at least 1, got"),
    ],
)
def test_a_wrong_crop_or_size_is_one_line(given, message, capsys):
    assert main(["data", "check", "clevr6", "--images", "1", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x", "argument --value-range: expected [LOW,HIGH], got x"),
        ("0", "argument --value-range: expected [LOW,HIGH], got 0"),
        ("[0,2]", "value_range: expected [0, 1] or [0, 255], got (0.0, 2.0)"),
    ],
)
def test_other_ranges_are_one_line(floats, given, message, capsys):
    assert main(["data", "check", str(floats), "--value-range", given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("split", ["../up", "/", ""])
def test_a_split_is_a_name(split, floats, tmp_path, capsys):
    out = tmp_path / "b.h5"
    for line in (
        ["data", "convert", str(floats), "--out", str(out)],
        ["data", "generate", "tetrominoes", "--images", "2", "--out", str(out)],
    ):
        assert main([*line, "--split", split]) == 2
        assert "split: expected a name of letters, digits" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [floats]


def test_a_sheet_replaces_none_of_the_data(fixtures_dir, tmp_path, capsys):
    """Neither a shard that a pattern matches nor a label map in the folder beside."""
    shard = tmp_path / "a.tfrecords"
    shutil.copy(fixtures_dir / "data" / "tetrominoes_mini.tfrecords", shard)
    for folder in ("p", "p_masks"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8), 9).save(tmp_path / folder / "a.png")
    for source, sheet in {"*.tfrecords": shard, "p": tmp_path / "p_masks/a.png"}.items():
        before = sheet.read_bytes()
        line = ["data", "check", str(tmp_path / source), "--sheet", str(sheet), "--images", "1"]
        assert main(line) == 2
        assert "--sheet: expected a new file or a picture of emorl" in capsys.readouterr().err
        assert sheet.read_bytes() == before


def test_converting_says_what_it_leaves_out(tmp_path, capsys):
    folder = write_pictures(tmp_path / "pictures", 8)
    train, out = len(open_dataset(folder)), tmp_path / "a.h5"

    def said(*arguments: str) -> str:
        out.unlink(missing_ok=True)
        assert main(["data", "convert", *arguments, "--out", str(out)]) == 0
        return capsys.readouterr().out

    told = f"split train, {train} images (train: {train} of 30 pictures; --split all stores all)"
    assert said(str(folder)) == f"written: {out}: {told}\n"
    assert said(str(folder), "--split", "all") == f"written: {out}: split all, 30 images\n"
    groups = tmp_path / "b.h5"
    with h5py.File(groups, "w") as file:
        for name in ("test", "train"):
            file[f"{name}/imgs"] = np.full((3, 8, 8, 3), 200, np.uint8)
    told = "split train, 2 images; not stored: test"
    assert said(str(groups), "--images", "2") == f"written: {out}: {told}\n"


@pytest.fixture
def trained(tmp_path, capsys) -> Callable[..., Path]:
    """A run of one step, with other options."""

    def train(*options: str) -> Path:
        run = tmp_path / "run"
        assert (
            main(["train", "--config", "smoke", "--out", str(run), *SHORT.split(), *options]) == 0
        )
        capsys.readouterr()
        return run

    return train


def write_groups(path: Path, *names: str) -> str:
    """Images of the smoke configuration's size, in each group others."""
    with h5py.File(path, "w") as file:
        for seed, name in enumerate(names):
            pixels = np.random.default_rng(seed).integers(0, 256, (3 + seed, 35, 35, 3), np.uint8)
            file[f"{name}/imgs"] = pixels
    return str(path)


def write_pictures(folder: Path, side: int) -> Path:
    """Thirty square pictures in a new folder."""
    folder.mkdir()
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


DRAWN = ["--images", "1", "--measured", "9", "--values", "2", "--dimensions", "1"]


def measured(run: Path, *options: str) -> tuple[int, str]:
    """How many images `traverse` measures, and what it calls them."""
    assert main(["traverse", str(run), *DRAWN, *options]) == 0
    record = json.loads((run / "traversals/traversals.json").read_text())
    return record["measured_images"], record["split"]


def test_the_split_that_is_asked_for_is_measured(trained, tmp_path, capsys):
    """Of held-out data, too; what is measured has its own name."""
    held_out = write_groups(tmp_path / "b.h5", "train", "val", "test")
    run = trained("--data.held_out", held_out)
    for split, images in {"train": 3, "val": 4, "test": 5}.items():
        assert main(["evaluate", str(run), "--split", split]) == 0
        assert f"b ({split}): {images} images" in capsys.readouterr().out
        assert measured(run, "--split", split) == (images, split)
    assert main(["evaluate", str(run)]) == 0
    assert "b (test): 5 images" in capsys.readouterr().out
    write_groups(tmp_path / "b.h5", "train", "val")
    assert measured(run) == (4, "val")
    write_groups(tmp_path / "b.h5", "odd")
    assert measured(run) == (3, "odd")
    write_groups(tmp_path / "b.h5", "train", "validation")
    for command in ("evaluate", "traverse"):
        capsys.readouterr()
        assert main([command, str(run), "--split", "test"]) == 2
        assert "a group 'test', got train/, validation/; --split" in capsys.readouterr().err
        assert main([command, str(run)]) == 2
        error = capsys.readouterr().err
        assert "expected a group test or val, or a single one, got train, validation;" in error
        assert error.count("\n") == 1
    assert measured(run, "--split", "validation") == (4, "validation")


def test_a_split_that_the_runs_own_data_lack_is_told_with_the_others(trained, tmp_path, capsys):
    file = write_groups(tmp_path / "a.h5", "train", "val")
    for options, known in (
        ([], "split: expected one of train, val, test, got 'odd'"),
        (["--data.train", file], "a.h5: expected a group 'odd', got train/, val/; --split"),
    ):
        run = trained(*options)
        for command in ("evaluate", "traverse"):
            capsys.readouterr()
            assert main([command, str(run), "--split", "odd"]) == 2
            error = capsys.readouterr().err
            assert known in error
            assert error.count("\n") == 1
        shutil.rmtree(run)


def test_pictures_that_are_held_out_are_divided_only_if_it_is_asked_for(trained, tmp_path, capsys):
    folder = write_pictures(tmp_path / "pictures", 35)
    run = trained("--data.held_out", str(folder))
    count = len(open_dataset(folder, split="val"))
    assert main(["evaluate", str(run)]) == 0
    assert "pictures (all): 30 images" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    assert f"pictures (val): {count} images" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--split", "odd"]) == 2
    assert "expected a split, train, val, test or all, got 'odd'" in capsys.readouterr().err


def test_results_have_the_name_of_the_folder_and_are_told_to_hold_trained_images(
    trained, tmp_path, capsys, monkeypatch
):
    folder = write_pictures(tmp_path / "pictures", 35)
    run = trained("--data.train", str(folder))
    monkeypatch.chdir(folder)
    assert main(["evaluate", str(run), "--data", ".", "--split", "all"]) == 0
    assert "note: the run was trained on some of these images" in capsys.readouterr().out
    assert (run / "evaluation/pictures-all.json").is_file()
    assert main(["evaluate", str(run), "--data", "../pictures", "--split", "test"]) == 0
    assert "trained on" not in capsys.readouterr().out


def test_a_file_without_splits_is_all_of_it(trained, tmp_path, capsys):
    np.save(tmp_path / "b.npy", np.random.default_rng(0).integers(0, 256, (4, 35, 35, 3), np.uint8))
    run = trained("--data.held_out", str(tmp_path / "b.npy"))
    for options in ([], ["--split", "val"]):
        assert main(["evaluate", str(run), *options]) == 0
        assert "b (all): 4 images" in capsys.readouterr().out


def test_files_that_changed_since_are_told(trained, tmp_path, capsys):
    train, held_out = tmp_path / "a.h5", tmp_path / "b.h5"
    write_groups(train, "train")
    write_groups(held_out, "train", "val", "test")
    run = trained("--data.train", str(train), "--data.held_out", str(held_out))
    assert main(["evaluate", str(run)]) == 0
    assert "not the files that" not in capsys.readouterr().out
    for path, groups in {train: ["odd", "train"], held_out: ["test"]}.items():
        before = path.read_bytes()
        write_groups(path, *groups)
        assert main(["evaluate", str(run), "--batch-size", "2"]) == 0
        notes = capsys.readouterr().out
        assert notes.count("not the files that the run was trained on so far") == 1
        assert f"note: data.{'train' if path == train else 'held_out'}: not the files" in notes
        path.write_bytes(before)
    (run / "data.json").write_text("[" * 100_000)
    assert main(["evaluate", str(run), "--batch-size", "3"]) == 0


def test_converting_few_objects_promises_nothing_of_splits(tmp_path, capsys):
    path, out = tmp_path / "v.npz", tmp_path / "a.h5"
    visibility = np.array([[1, 1, 0], [1, 1, 1]], np.float32)
    images = np.full((2, 8, 8, 3), 200, np.uint8)
    np.savez(path, image=images, visibility=visibility)
    line = ["data", "convert", str(path), "--max-objects", "1", "--out", str(out)]
    assert main(line) == 0
    told = "split train, 1 images (at most 1 objects, 1 of 2 images)"
    assert capsys.readouterr().out == f"written: {out}: {told}\n"
