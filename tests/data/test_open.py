from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pytest
import torch
from layout_testing import HDF5
from own_files_writing import OWN
from PIL import Image
from record_writing import TFRECORDS

from emorl.cli import arguments
from emorl.data import GENERATORS, UNBOUNDED, check, convert, open_dataset
from emorl.data.transforms import CENTRE, CROPS
from emorl.training.config import Crop

LAYOUTS = {**HDF5, **TFRECORDS, **OWN}


@pytest.fixture
def clevr_file(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 240, 320, 3), np.uint8)
    labels = rng.integers(0, 3, (2, 240, 320))
    path = tmp_path / "clevr.h5"
    with h5py.File(path, "w") as file:
        file["train/imgs"] = images
        masks = labels[:, None, ..., None] == np.arange(3)[:, None, None, None]
        file["train/masks"] = masks.astype(np.uint8)
    return path, images, labels


def test_generators_are_found_by_name() -> None:
    endless = open_dataset("tetrominoes")
    assert len(endless) == UNBOUNDED
    assert endless.image_size == (35, 35)
    assert len(open_dataset("tetrominoes-real10")) == 10


def test_split_and_seed_reach_the_generator() -> None:
    images = [
        open_dataset("tetrominoes", split=split, seed=seed)[0]["image"]
        for split, seed in [("train", 0), ("test", 0), ("train", 1)]
    ]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        ("nope", "expected one that is there, got nope: "),
        ("cuda:99", "expected one that is there, got cuda:99: "),
        ("meta", "expected one with memory, got meta"),
        (3, "expected a torch.device or its name, got 3"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(name: str, device: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^device: {complaint}[^\n]*$"):
        open_dataset(name, device=device)


def test_a_slice_is_a_batch() -> None:
    data = open_dataset("tetrominoes", limit=5)
    assert torch.equal(data[1:3].image, data.__getitems__([1, 2]).image)
    assert data[-2:].index.tolist() == [3, 4]
    assert len(open_dataset("tetrominoes")[:2]) == len(data[:2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_slice_of_a_file_is_an_empty_batch(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](path := tmp_path / "file")
    data = open_dataset(path, split="all" if path.is_dir() else "train")
    one, none = data[:1], data[len(data) : len(data) + 9]
    assert len(none) == 0
    assert [*none.factors] == [*one.factors]
    assert (none.mask is None) == (one.mask is None)
    tensors = [none.image, none.index, *none.factors.values()]
    others = [one.image, one.index, *one.factors.values()]
    if one.mask is not None and none.mask is not None:
        tensors, others = [*tensors, none.mask], [*others, one.mask]
    for tensor, other in zip(tensors, others, strict=True):
        assert (tensor.dtype, tensor.shape) == (other.dtype, (0, *other.shape[1:]))


@pytest.mark.parametrize("name", [*GENERATORS, *LAYOUTS])
def test_indices_are_any_sequence_of_whole_numbers(name: str, tmp_path: Path) -> None:
    if name in LAYOUTS:
        LAYOUTS[name](tmp_path / "file")
    split = "all" if (tmp_path / "file").is_dir() else "train"
    data = open_dataset(name if name in GENERATORS else tmp_path / "file", split=split)
    numbers = [min(1, len(data) - 1), 0]
    expected = data.__getitems__(numbers)
    tensor = torch.tensor(numbers)
    indices: Any
    for indices in (tensor, [*tensor], tensor.numpy(), np.array(numbers, np.uint8), (*numbers,)):
        batch = data.__getitems__(indices)
        assert torch.equal(batch.image, expected.image)
        assert batch.index.tolist() == numbers
    wrong: Any
    for wrong in (tensor.float(), tensor.numpy() > 0, [0.5], tensor[None]):
        with pytest.raises(
            ValueError, match=r"^indices: expected a sequence of whole numbers, got"
        ):
            data.__getitems__(wrong)


def test_indices_of_a_limited_data_set_are_checked_alike() -> None:
    data = open_dataset("tetrominoes", limit=5, size=16)
    assert data.__getitems__(torch.tensor([4, 0])).index.tolist() == [4, 0]
    wrong: Any
    for wrong in (torch.zeros(1, 2, dtype=torch.int64), ["0"]):
        with pytest.raises(ValueError, match="indices: expected a sequence of whole numbers"):
            data.__getitems__(wrong)


def test_limit_keeps_the_first_images() -> None:
    limited, whole = open_dataset("tetrominoes", limit=5), open_dataset("tetrominoes")
    assert len(limited) == 5
    assert torch.equal(limited[4]["image"], whole[4]["image"])
    with pytest.raises(IndexError, match=r"tetrominoes: index 5 outside of 0\.\.4"):
        limited[5]
    assert limited[-1]["index"] == 4
    with pytest.raises(IndexError, match=r"tetrominoes: index -1 outside of 0\.\.4"):
        limited[-6]
    with pytest.raises(TypeError, match="'list' object cannot be interpreted as an integer"):
        limited[[1, 2]]
    assert len(open_dataset("tetrominoes-real10", limit=50)) == 10


def test_crop_and_size_do_what_pillow_does(clevr_file: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, images, labels = clevr_file
    dataset = open_dataset(path, crop="clevr", size=96)
    assert dataset.image_size == (96, 96)
    batch = dataset.__getitems__([1, 0])
    assert batch.mask is not None
    assert batch.mask.shape == (2, 1, 96, 96)
    for row, index in enumerate([1, 0]):
        image = Image.fromarray(images[index, 29:221, 64:256]).resize((96, 96), Image.BICUBIC)
        assert (batch.image[row].permute(1, 2, 0).numpy() == np.array(image)).all()
        label = Image.fromarray(labels[index, 29:221, 64:256].astype(np.uint8))
        assert (batch.mask[row, 0].numpy() == np.array(label.resize((96, 96), 0))).all()


def test_names_of_crops_are_the_same_everywhere() -> None:
    """For type checkers, for the command line without torch, and where they are used."""
    assert (*CROPS, CENTRE) == get_args(Crop) == arguments.CROPS


def test_crop_alone_cuts(clevr_file: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, images, labels = clevr_file
    sample = open_dataset(path, crop="clevr")[0]
    assert (sample["image"].permute(1, 2, 0).numpy() == images[0, 29:221, 64:256]).all()
    assert (sample["mask"][0].numpy() == labels[0, 29:221, 64:256]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "clevr"}, "crop 'clevr': expected images of 240x320, got 35x35"),
        ({"crop": "middle"}, "crop: expected one of clevr, .*, centre, .*, got 'middle'"),
        ({"size": 0}, "size: expected at least 1, got 0"),
        ({"limit": 0}, "limit: expected at least 1, got 0"),
        ({"seed": 2.9}, "seed: expected a whole number, got 2.9"),
        ({"limit": "3"}, "limit: expected a whole number or null, got '3'"),
        ({"size": "64"}, r"size: expected a whole number or \[.*\], got '64'"),
        ({"size": 3.5}, "size: expected a whole number or .*, got 3.5"),
        ({"crop": (0, 9.5, 0, 9)}, r"crop: expected \[FIRST_ROW, .*\], got \[0, 9.5, 0, 9\]"),
        ({"max_objects": True}, "max_objects: expected a whole number or null, got true"),
        ({"split": "dev"}, "split: expected one of train, val, test, got 'dev'"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset("tetrominoes", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [open_dataset, check], ids=["open", "check"])
@pytest.mark.parametrize("spec", ["tetromino", "empty", "picture"])
def test_unknown_data_are_answered_with_what_there_is(
    function: object, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("picture").write_bytes(b"\xff\xd8\xff\xe0 not a data set")
    with pytest.raises(ValueError, match=f"{spec}: .*HDF5 .* TFRecord") as caught:
        function(spec)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    assert ("did you mean tetrominoes?" in str(caught.value)) == (spec == "tetromino")


def test_files_are_recognised_by_content(fixtures_dir: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.h5"
    records.write_bytes((fixtures_dir / "data" / "tetrominoes_mini.tfrecords").read_bytes())
    assert open_dataset(str(records)).name == "tetrominoes"
    stored = convert(open_dataset(records), tmp_path / "stored.tfrecords")
    assert torch.equal(open_dataset(stored)[0]["image"], open_dataset(records)[0]["image"])


def test_a_user_block_before_hdf5_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["train/imgs"] = np.zeros((1, 2, 2, 3), np.uint8)
    assert len(open_dataset(path)) == 1


def test_importing_needs_no_optional_package() -> None:
    program = (
        "import sys, emorl.data as d; d.open_dataset('tetrominoes')[0];"
        "print(sorted({'h5py', 'PIL', 'google_crc32c', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize(("ending", "kind"), [("h5", "HDF5 files"), ("npy", "arrays of NumPy")])
def test_a_pattern_means_shards_alone(ending: str, kind: str, tmp_path: Path) -> None:
    images = np.full((2, 4, 4, 3), 9, np.uint8)
    for name in "ab":
        if ending == "npy":
            np.save(tmp_path / f"{name}.npy", images)
        else:
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                file["train/imgs"] = images
    with pytest.raises(ValueError, match=rf"shards of a TFRecord file, got 2 {kind}; name one"):
        open_dataset(tmp_path / f"*.{ending}")
    assert len(open_dataset(tmp_path / f"a*.{ending}")) == 2
