"""The data sets of a run: paths, ranges of values, and what was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from emorl.data import open_dataset
from emorl.training.config import DataConfig, RunConfig, TrainerConfig
from emorl.training.config_file import find_config, load_config
from emorl.training.images import (
    held_out_images,
    same_images,
    training_images,
    with_absolute_paths,
    with_decided_ranges,
    with_earlier_ranges,
)
from emorl.training.run import notes_on, prepare

NOISE = np.random.default_rng(0).integers(2, 256, (40, 35, 35, 3))


def write(path: Path, images: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        file["train/imgs"] = images
    return str(path)


@pytest.mark.parametrize("key", ["train", "held_out"])
def test_a_run_keeps_absolute_paths(key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, kept in {
        "a.h5": tmp_path / "a.h5",
        "./x/../a.h5": tmp_path / "a.h5",
        "~/a.h5": tmp_path / "home/a.h5",
        "/data/a.h5": "/data/a.h5",
        "tetrominoes": "tetrominoes",
        "~nobody-of-this-name/a.h5": tmp_path / "~nobody-of-this-name/a.h5",
    }.items():
        assert getattr(with_absolute_paths(DataConfig(**{key: given})), key) == str(kept)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.h5", NOISE.astype(np.uint8))
    assert len(open_dataset("~/a.h5")) == 40


def test_ranges_are_decided_once_and_kept(tmp_path):
    """The held-out file's too, which may be another; what is asked for later comes first."""
    floats = write(tmp_path / "a.h5", NOISE / 255)
    integers = write(tmp_path / "b.h5", NOISE.astype(np.uint8))
    asked = DataConfig(train=floats, held_out=integers)
    decided = with_decided_ranges(asked, training_images(asked), held_out_images(asked))
    assert (decided.value_range, decided.held_out_value_range) == ((0, 1), (0, 255))
    assert with_earlier_ranges(asked, decided) == decided
    held_out = held_out_images(decided)
    assert held_out is not None
    assert not same_images(training_images(DataConfig(train="tetrominoes")), held_out)
    assert same_images(training_images(decided), held_out), "the same after scaling"
    again = DataConfig(train=floats, held_out=integers, value_range=(0, 255))
    assert with_earlier_ranges(again, decided).value_range == (0, 255)
    other = DataConfig(train=integers)
    assert with_earlier_ranges(other, decided).value_range is None


def test_a_range_that_is_asked_for_holds_for_both_files(tmp_path):
    files = [write(tmp_path / name, NOISE.astype(np.float32)) for name in ("a.h5", "b.h5")]
    with pytest.raises(ValueError, match=r"a\.h5: image 0: .* say so: value_range \[0, 255\]"):
        training_images(DataConfig(train=files[0]))
    data = DataConfig(train=files[0], held_out=files[1], value_range=(0, 255))
    for dataset in (training_images(data), held_out_images(data)):
        assert dataset is not None
        assert (dataset[3]["image"].permute(1, 2, 0).numpy() == NOISE[3]).all()
    mixed = DataConfig(train="tetrominoes", held_out=files[1], held_out_value_range=(0, 255))
    assert held_out_images(mixed) is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_range": (0, 2)}, r"data\.value_range: expected \[0, 1 or 255\] or null, got"),
        ({"held_out_value_range": (1, 0)}, r"data\.held_out_value_range: expected \[0, 1 or"),
        ({"workers": 10**15}, r"data\.workers: expected at most \d+, .*, got 1000000000000000"),
    ],
    ids=["range", "held out", "workers"],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**changes)


def test_an_impossible_batch_is_refused_before_memory_is_taken(tmp_path):
    config = load_config(find_config("smoke"))
    trainer = TrainerConfig(batch_size=10**11, device="cpu")
    with pytest.raises(
        ValueError, match=r"trainer\.batch_size: 100000000000 images of 35x35 would"
    ):
        prepare(RunConfig(config.network, data=config.data, trainer=trainer), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_user_should_know_of_the_data_is_told(tmp_path):
    train, other = open_dataset("tetrominoes-real10"), open_dataset("tetrominoes", limit=40)
    data = DataConfig()
    assert notes_on(data, train, None) == notes_on(data, train, other) == []
    [line] = notes_on(data, train, open_dataset("tetrominoes-real10"))
    assert line.startswith("data.held_out: the run is trained on these images")
    train.slow = other.slow = "a.h5: slow; emorl data convert"
    assert notes_on(data, train, other) == [train.slow]


@pytest.mark.parametrize("held_out", [None, "own"])
def test_no_image_is_held_out_where_all_are_trained_on(held_out, tmp_path):
    """Other splits are parts of all images, and begin with others than these."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, pixels in enumerate(NOISE.astype(np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    data = DataConfig(train=str(folder), split="all", held_out=held_out and str(folder))
    images, found = training_images(data), held_out_images(data)
    assert len(images) == len(NOISE)
    assert (found is None) == (held_out is None)
    [line] = notes_on(data, images, found)
    assert ("every image is trained on" if found is None else "trained on these images") in line


def test_images_of_another_size_than_the_network_s_are_refused(tmp_path):
    """EfficientMORL takes any size: it would be trained at one and used at the other."""
    config = load_config(find_config("smoke"), None, ["--network.image_size=[64,32]"])
    with pytest.raises(ValueError, match=r"expected \[35, 35\].*got \[64, 32\]; data\.size \[64"):
        prepare(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_another_size_are_refused_when_a_run_goes_on_too(tmp_path):
    prepare(load_config(find_config("smoke")), tmp_path / "run").run()
    smaller = load_config(find_config("smoke"), None, ["--data.size=24"])
    with pytest.raises(ValueError, match=r"expected \[24, 24\], the images' size, got \[35, 35\]"):
        prepare(smaller, tmp_path / "run", resume=True)


@pytest.mark.parametrize("group", ["validation", "train"])
def test_the_only_group_of_a_held_out_file_is_taken(group, tmp_path):
    path = tmp_path / "b.h5"
    with h5py.File(path, "w") as file:
        file[f"{group}/imgs"] = NOISE[:7].astype(np.uint8)
    held_out = held_out_images(DataConfig(held_out=str(path)))
    assert held_out is not None
    assert len(held_out) == 7


def test_files_that_changed_are_told_when_a_run_goes_on(tmp_path):
    """Whatever their folder is called now; not for a generator, nor for the same file elsewhere."""
    images = NOISE.astype(np.uint8)
    config = load_config(find_config("smoke"))

    def notes(path: str) -> list[str]:
        data = DataConfig(train=path)
        trainer = prepare(dataclasses.replace(config, data=data), tmp_path / "run", resume=True)
        trainer.lock.release()
        return [note for note in trainer.notes if "trained on so far" in note]

    path = write(tmp_path / "a.h5", images)
    assert notes(path) == []
    (tmp_path / "moved").mkdir()
    moved = str(Path(path).rename(tmp_path / "moved/a.h5"))
    assert notes(moved) == []
    images[20, 3, 3] = 9
    write(tmp_path / "moved/a.h5", images)
    assert len(notes(moved)) == 1
    content = bytearray(Path(moved).read_bytes())
    content[-1] ^= 1  # of the last image
    Path(moved).write_bytes(content)
    assert [note.partition(":")[0] for note in notes(moved)] == ["data.train"]
    assert notes(moved) == [], "the run has been trained on it"
