"""`emorl train --data.train FOLDER`: what follows the images, and a run on photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emorl.cli import main
from emorl.training.config import DataConfig
from emorl.training.config_file import find_config, load_config
from emorl.training.own_images import describe_memory, follow, trained_shape
from emorl.training.run import prepare

RNG = np.random.default_rng(0)
TINY = [
    "--data.workers=0",
    "--network.slot_dim=8",
    "--network.encoder_channels=8",
    "--network.encoder_layers=1",
    "--network.decoder_channels=8",
    "--trainer.batch_size=2",
    "--trainer.checkpoint_every=2",
    "--trainer.picture_every=0",
]
MODES = {"RGB": "webp", "L": "jpg", "P": "bmp", "RGBA": "png", "CMYK": "jpg", "1": "png"}


def photographs(folder: Path, *sizes: tuple[int, int], labels: int = 0) -> Path:
    """Pictures of these sizes in all modes, for training; one for validation."""
    modes = [*MODES.items()]
    for number, (height, width) in enumerate([*sizes, sizes[0]]):
        place = folder / ("train" if number < len(sizes) else "val")
        place.mkdir(parents=True, exist_ok=True)
        mode, ending = modes[number % len(modes)]
        pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(place / f"{number}.{ending}")
        if labels:
            label_map = np.arange(height * width).reshape(height, width) % labels
            Image.fromarray(label_map.astype(np.uint8)).save(place / f"{number}_mask.png")
    return folder


def run_config(folder: Path, *options: str):
    return load_config(find_config("your-images"), None, [f"--data.train={folder}", *options])


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ([(35, 35)] * 2, (35, 35)),
        ([(48, 128)] * 2, (48, 128)),
        ([(30, 50), (50, 30), (20, 20)], (30, 30)),
        ([(150, 200)], (64, 88)),  # 85.3, in multiples of 8
        ([(300, 90)], (128, 64)),
        ([(129, 129)], (64, 64)),
    ],
)
def test_the_image_size_follows_the_images(sizes, shape, tmp_path):
    folder = photographs(tmp_path / "in", *sizes)
    assert trained_shape(DataConfig(train=str(folder)))[0] == shape


def test_sizes_and_slots_follow_the_images_unless_given(tmp_path):
    folder = photographs(tmp_path / "in", (20, 30), (20, 30), labels=4)
    options, lines = follow(run_config(folder), {})
    assert options == [
        "--data.size=[20,30]",
        "--network.image_size=[20,30]",
        "--network.num_slots=4",
    ]
    assert lines == [
        "image size: 20x30, as the images have",
        "slots: 4, since the first 2 label maps have up to 4 labels",
    ]
    given = {"data.size": "16", "network.num_slots": "3"}
    config = run_config(folder, *(f"--{key}={value}" for key, value in given.items()))
    assert follow(config, given)[0] == ["--network.image_size=[16,16]"]
    given = {"network.image_size": "[16,24]"}
    config = run_config(folder, "--network.image_size=[16,24]")
    assert follow(config, given)[0][0] == "--data.size=[16,24]"


def test_memory_grows_with_the_batch(tmp_path):
    """The slope is that of two measured batches, whatever the process held before."""
    folder = photographs(tmp_path / "in", (16, 16))

    def bytes_for(batch: int) -> float:
        options = ["--network.image_size=[16,16]", f"--trainer.batch_size={batch}"]
        line = describe_memory(run_config(folder, *TINY, *options))
        number, unit = line.split("about ")[1].split()[:2]
        return float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]

    once = bytes_for(2)
    torch.zeros(64 << 20)  # freed, and kept by the process
    assert bytes_for(2) == once
    activations = 100_000 * 16 * 16 * 4  # bytes: one number a pixel and image, the least there is
    assert bytes_for(100_000) > once + activations


def test_a_folder_of_photographs_is_enough(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs(Path("photos"), (30, 50), (50, 30), (40, 40), (30, 60), (35, 35), (20, 40))
    train = ["train", "--data.train", "photos", "--out", "run", "--resume", "auto"]
    assert main([*train, *TINY, "--data.size=16", "--trainer.steps=2"]) == 0
    printed = capsys.readouterr()
    assert "image size: 16x16, as data.size says" in printed.out
    assert "slots: 7, since there are no label maps" in printed.out
    assert "memory: about " in printed.out
    assert "trainer.eval_every: off, since there are no label maps" in printed.err
    # The run has all that it decided, and goes on without being asked again.
    assert load_config(Path("run/config.yaml")).network.num_slots == 7
    assert main(["train", "--out", "run", "--resume", "auto", "--trainer.steps=3"]) == 0
    assert "image size" not in capsys.readouterr().out
    assert main(["evaluate", "run", "--split", "val", "--batch-size", "2"]) == 0
    assert "no segmentation metrics" in capsys.readouterr().out
    result = json.loads(next(Path("run/evaluation").glob("*.json")).read_text())
    assert result["metrics"].keys() >= {"mse", "nll", "kl"}
    assert "fg_ari" not in result["metrics"]


def test_a_picture_that_cannot_be_read_leads_to_what_lists_all(tmp_path, capsys):
    folder = photographs(tmp_path / "photos", (16, 16), (16, 16))
    (folder / "train/x.png").write_bytes(b"no picture")
    line = ["train", "--data.train", str(folder), "--out", str(tmp_path / "run")]
    assert main([*line, *TINY, "--trainer.steps=2"]) == 2
    told = capsys.readouterr().err
    assert told.endswith(f"; emorl data check {folder} lists all such\n")
    assert not (tmp_path / "run").exists()


def test_slot_attention_follows_a_folder_too(tmp_path, capsys):
    folder = photographs(tmp_path / "photos", (16, 16), (16, 16), labels=3)
    run = tmp_path / "run"
    line = ["train", "--model", "slot_attention", "--data.train", str(folder), "--out", str(run)]
    assert main([*line, *TINY, "--trainer.steps=2"]) == 0
    assert "slots: 3, since the first 2 label maps have up to 3 labels" in capsys.readouterr().out
    config = load_config(run / "config.yaml")
    assert (config.model, config.network.image_size) == ("slot_attention", (16, 16))


@pytest.mark.parametrize("labels", [0, 3])
def test_runs_are_measured_where_there_are_label_maps(labels, tmp_path):
    folder = photographs(tmp_path / "photos", (16, 16), labels=labels)
    config = run_config(folder, *TINY, "--network.image_size=[16,16]", "--trainer.eval_every=2")
    trainer = prepare(config, tmp_path / "run")
    try:
        assert trainer.config.eval_every == (2 if labels else 0)
        assert any("trainer.eval_every: off" in note for note in trainer.notes) == (labels == 0)
    finally:
        trainer.lock.release()


def test_images_without_others_to_measure_on(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "b.png")
    options, lines = follow(run_config(folder, "--data.split=all"), {})
    assert options[-1] == "--trainer.eval_every=0"
    assert lines[-1] == "no images to measure on: none belongs to the split val"


def test_other_files_of_the_folder_are_told(tmp_path):
    folder = photographs(tmp_path / "photos", (16, 16))
    (folder / "a.gif").touch()
    _, lines = follow(run_config(folder), {})
    assert lines[-1] == "passed over: 1 .gif"
