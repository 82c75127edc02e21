"""Every layout of files, and what is done with it: a column of the matrix is a test here.

docs/datasets.md has the matrix as `test_the_matrix_is_documented` prints it.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from layout_testing import HDF5, Scenes
from own_files_writing import OWN
from record_writing import TFRECORDS

from emorl.data import Batch, ObjectDataset, check, open_dataset
from emorl.evaluation import evaluate
from emorl.training.config import TrainerConfig
from emorl.training.trainer import Trainer
from tests.training_fakes import SIZE, FakeModel

LAYOUTS = {**HDF5, **TFRECORDS, **OWN}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"
COLUMNS = {
    "recognised": "test_recognised",
    "read exactly": "test_read_exactly",
    "masks": "test_masks",
    "factors": "test_factors",
    "split": "test_split",
    "damaged": "test_damaged",
    "`data check`": "test_check",
    "`train` step": "test_train_step",
    "`evaluate`": "test_evaluate",
}
WITHOUT_FACTORS = (
    "arrays at the root",
    "Objects Room",
    "folder of pictures",
    "NumPy array (.npy)",
)
WITHOUT_CHECKSUMS = (*HDF5, "NumPy array (.npy)")
PUBLISHED = {
    "object-centric-library": "90,000 / 5,000 / 5,000",
    "multi_object_datasets_torch": "90,000 / 5,000 / 5,000",
    "Tetrominoes": "60,000 / 320",
    "Multi-dSprites, colored on grayscale": "60,000 / 320",
    "Multi-dSprites, binarized": "60,000 / 320",
    "Multi-dSprites, colored on colored": "60,000 / 320",
    "CLEVR with masks": "70,000 / 320",
    "EfficientMORL": "group",
    "folder of pictures": "folders, or names",
    "ClevrTex": "tenths: 8 / 1 / 1",
}
Stored = tuple[str, Path, Scenes]


@pytest.fixture(scope="module", params=LAYOUTS)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A file of each layout, and what was written."""
    path = tmp_path_factory.mktemp("layout") / "file"
    return request.param, path, LAYOUTS[request.param](path)


@pytest.fixture(scope="module")
def opened(stored: Stored) -> ObjectDataset:
    return open_dataset(stored[1])


@pytest.fixture(scope="module")
def small(stored: Stored) -> ObjectDataset:
    """As large as the model of these tests wants them."""
    return open_dataset(stored[1], size=SIZE)


def test_recognised(stored: Stored, opened: ObjectDataset) -> None:
    _, _, made = stored
    assert len(opened) == len(made.images)
    assert opened.image_size == made.images.shape[1:3]


def test_read_exactly(stored: Stored, opened: ObjectDataset) -> None:
    """Any images in any order, and alone."""
    _, _, made = stored
    last = len(made.images) - 1
    for indices in ([last, 0], [0], [*range(last + 1)]):
        images = made.images[indices].transpose(0, 3, 1, 2)
        batch = opened.__getitems__(indices)
        assert (batch.image.numpy() == images).all()
        assert (opened.read_images(indices).numpy() == images).all()
        assert batch.index.tolist() == indices
    assert opened.read_images([]).shape == (0, *opened[0]["image"].shape)
    assert len(opened.read([])[0]) == len(opened[:0]) == 0


def test_masks(stored: Stored, opened: ObjectDataset) -> None:
    _, _, made = stored
    mask = opened[:].mask
    assert mask is not None
    assert mask.dtype == torch.uint8
    assert (mask[:, 0].numpy() == made.labels).all()


def test_factors(stored: Stored, opened: ObjectDataset) -> None:
    name, _, made = stored
    factors = opened[:].factors
    assert factors.keys() == made.factors.keys()
    assert bool(factors) != (name in WITHOUT_FACTORS)
    for key, values in made.factors.items():
        assert (factors[key].numpy() == values.astype(np.float32)).all()


def test_split(stored: Stored, opened: ObjectDataset) -> None:
    """A group, a folder, tenths; else the whole file, smaller than the published numbers here.

    tests/data/test_splits.py has files that are as large.
    """
    name, path, _ = stored
    if name == "EfficientMORL":
        with pytest.raises(ValueError, match="expected a group 'test', got train/"):
            open_dataset(path, split="test")
    elif name == "folder of pictures":
        with pytest.raises(ValueError, match="none of the 6 pictures belongs to split 'test'"):
            open_dataset(path, split="test")
    elif name == "ClevrTex":
        counts = [len(open_dataset(path, split=split)) for split in ("train", "val", "test")]
        assert counts == [8, 1, 1]
    else:
        assert len(open_dataset(path, split="test")) == len(opened)


def damaged(content: bytes) -> Iterator[bytes]:
    """Cut short, emptied, and changed; tests/torture has 50 of each, and 2,000."""
    draw = random.Random(0)
    yield b""
    yield content[: len(content) // 2]
    yield content[: 9 * len(content) // 10]
    for _ in range(4):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield bytes(changed)


def outcome(path: Path) -> Batch | str:
    """The images of a file, or its one clear error."""
    try:
        return open_dataset(path)[:]
    except ValueError as error:
        return str(error)


def test_damaged(stored: Stored, tmp_path: Path) -> None:
    """One line that names the file; where there are no checksums other numbers may be read."""
    name, path, made = stored
    broken = tmp_path / "broken"
    (shutil.copytree if path.is_dir() else shutil.copy)(path, broken)
    file = broken if path.is_file() else min(broken.rglob("*[0-3].png"))
    file = file.with_name("CLEVRTEX_full_000002.png") if name == "ClevrTex" else file
    for number, content in enumerate(damaged(file.read_bytes())):
        file.write_bytes(content)
        found = outcome(broken)
        if isinstance(found, str):
            assert re.match(rf"{file}: [^\n]+$", found)
        else:
            assert number > 2, "of a file cut short"
            right = made.images.transpose(0, 3, 1, 2)
            assert name in WITHOUT_CHECKSUMS or np.array_equal(
                found.image[:, : right.shape[1]], right
            )


def test_check(stored: Stored) -> None:
    _, path, _ = stored
    report = check(path, 2)
    for line in ("layout: ", "values: ", "masks: ", "speed: ", "problems"):
        assert f"\n{line}" in report


def test_train_step(small: ObjectDataset, tmp_path: Path) -> None:
    config = TrainerConfig(steps=1, batch_size=2, picture_every=0, eval_every=0, device="cpu")
    result = Trainer(FakeModel(), small, config, tmp_path).run()
    assert result.step == 1


def test_evaluate(small: ObjectDataset) -> None:
    metrics = evaluate(FakeModel(), small, images=2, batch_size=2)["metrics"]
    assert metrics["mse"]["count"] == len(small[:2])
    assert metrics["fg_ari"]["count"] > 0


def matrix() -> str:
    """A row for each layout; a cell is what its test shows."""
    lines = ["| layout | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for layout in LAYOUTS:
        own = {
            "factors": "none there" if layout in WITHOUT_FACTORS else "yes",
            "split": PUBLISHED.get(layout, "one"),
            "damaged": "one line",
        }
        cells = " | ".join(own.get(column, "yes") for column in COLUMNS)
        lines.append(f"| {layout} | {cells} |")
    return "\n".join(lines)


def test_the_matrix_is_documented() -> None:
    """Each column is a test of all layouts, and the page has the table."""
    assert all(name in globals() for name in COLUMNS.values())
    print(matrix())
    assert matrix() in PAGE.read_text()
