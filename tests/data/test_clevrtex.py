"""ClevrTex folders, written by Pillow in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emorl.cli import main
from emorl.data import open_dataset

RNG = np.random.default_rng(0)
OBJECT = {"3d_coords": [1.0, -2.0, 0.9], "rotation": 30.0, "size": "large", "shape": "cube"}


def write(folder: Path, scenes: int, variant: str = "full") -> tuple[np.ndarray, np.ndarray]:
    """Scenes of two different contents in turn."""
    images = RNG.integers(0, 256, (2, 240, 320, 3), np.uint8)
    labels = RNG.integers(0, 3, (2, 240, 320), np.uint8)
    for number in range(scenes):
        place = folder / str(number // 6)
        place.mkdir(parents=True, exist_ok=True)
        stem = str(place / f"CLEVRTEX_{variant}_{number:06}")
        Image.fromarray(images[number % 2]).save(f"{stem}.png", compress_level=0)
        flat = Image.fromarray(labels[number % 2], "P")
        flat.putpalette(list(range(9)))
        flat.save(f"{stem}_flat.png", compress_level=0)
        Path(f"{stem}.json").write_text(json.dumps({"objects": [OBJECT] * 2}))
    return images, labels


def test_scenes_are_cut_and_resized_as_published(tmp_path):
    images, labels = write(tmp_path, 10)
    dataset = open_dataset(tmp_path, crop="clevrtex", size=128)
    assert len(dataset) == 8
    assert open_dataset(tmp_path, limit=3).part == dataset.part
    assert dataset.part == "train: 8 of 10 scenes, as published"
    batch = dataset.__getitems__([0, 1])
    assert batch.mask is not None
    for row in (0, 1):
        cut = images[row, 24:216, 64:256], labels[row, 24:216, 64:256]
        image = Image.fromarray(cut[0]).resize((128, 128), Image.BILINEAR)
        label = Image.fromarray(cut[1]).resize((128, 128), Image.NEAREST)
        assert (batch.image[row].permute(1, 2, 0).numpy() == np.array(image)).all()
        assert (batch.mask[row, 0].numpy() == np.array(label)).all()
    assert batch.factors["visibility"].sum(1).tolist() == [3, 3], "the background counts"
    assert batch.factors["size"][0, :4].tolist() == pytest.approx([0, 0.9, 0.9, 0])
    assert batch.factors["y"][0, 1] == -2


def test_its_pictures_are_segmented_without_its_label_maps(tmp_path, capsys):
    write(tmp_path / "scenes", 3)
    line = ["segment", "tetrominoes-laptop", str(tmp_path / "scenes"), "--out"]
    assert main([*line, str(tmp_path / "out")]) == 0
    assert "written: 3 pictures, in " in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["pbg", "outd"])
def test_splits_go_by_position(variant, tmp_path):
    write(tmp_path, 10, variant)
    names = {
        split: [Path(p).stem[-2:] for p in open_dataset(tmp_path, split=split).pictures]
        for split in ("test", "val", "train", "all")
    }
    numbers = [f"{number:02}" for number in range(10)]
    whole = variant == "outd"
    assert names["test"] == (numbers if whole else numbers[:1])
    assert names["val"] == (numbers if whole else numbers[1:2])
    assert names["train"] == (numbers if whole else numbers[2:])
    assert names["all"] == numbers


DAMAGED = {
    "no": None,
    "text": "no",
    "a list": "[1]",
    "no size": '{"objects": [{"size": "huge"}]}',
    "400 digits": json.dumps({"objects": [{**OBJECT, "rotation": 10**400}]}),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_descriptions_are_named(kind, tmp_path):
    write(tmp_path, 1)
    path = tmp_path / "0/CLEVRTEX_full_000000.json"
    path.unlink()
    if (text := DAMAGED[kind]) is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}: "):
        open_dataset(tmp_path, split="all")[0]


@pytest.mark.parametrize("ending", [".json", "_flat.png"])
def test_pipes_and_devices_are_not_read(ending, tmp_path):
    write(tmp_path, 1)
    path = tmp_path / f"0/CLEVRTEX_full_000000{ending}"
    path.unlink()
    path.symlink_to("/dev/null")
    with pytest.raises(ValueError, match=f"^{path}: expected a file, got a device or a pipe"):
        open_dataset(tmp_path, split="all")[0]


def test_missing_label_maps_and_two_variants_are_named(tmp_path):
    write(tmp_path, 1)
    flat = tmp_path / "0/CLEVRTEX_full_000000_flat.png"
    flat.unlink()
    with pytest.raises(ValueError, match=f"^{flat}: No such file"):
        open_dataset(tmp_path, split="all")
    write(tmp_path, 1, "camo")
    with pytest.raises(ValueError, match="expected a variant of ClevrTex, got camo, full"):
        open_dataset(tmp_path, split="all")


def test_descriptions_are_files_of_the_data(tmp_path):
    write(tmp_path, 10)
    found = open_dataset(tmp_path, split="test").files()
    assert [path.suffix for path in found] == [".png", ".png", ".json"]
