"""Every layout of files: recognised, read exactly, and used; the matrix is in docs/datasets.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layout_testing import HDF5, Scenes
from record_writing import TFRECORDS

from emorl.data import ObjectDataset, open_dataset

LAYOUTS = {**HDF5, **TFRECORDS}


@pytest.fixture(scope="module", params=LAYOUTS)
def stored(request, tmp_path_factory) -> tuple[str, Path, Scenes]:
    """A file of each layout, and what was written."""
    path = tmp_path_factory.mktemp("layout") / "file"
    return request.param, path, LAYOUTS[request.param](path)


@pytest.fixture(scope="module")
def opened(stored) -> ObjectDataset:
    return open_dataset(stored[1])


def test_recognised(stored, opened):
    _, _, made = stored
    assert len(opened) == len(made.images)
    assert opened.image_size == made.images.shape[1:3]


def test_read_exactly(stored, opened):
    """Any images in any order, and alone."""
    _, _, made = stored
    last = len(made.images) - 1
    for indices in ([last, 0], [0], [*range(last + 1)]):
        images = made.images[indices].transpose(0, 3, 1, 2)
        batch = opened.__getitems__(indices)
        assert (batch.image.numpy() == images).all()
        assert (opened.read_images(indices).numpy() == images).all()
        assert batch.index.tolist() == indices


def test_masks(stored, opened):
    _, _, made = stored
    batch = opened[:]
    assert (batch.mask[:, 0].numpy() == made.labels).all()


def test_factors(stored, opened):
    _, _, made = stored
    factors = opened[:].factors
    assert factors.keys() == made.factors.keys()
    for name, values in made.factors.items():
        assert (factors[name].numpy() == values.astype(np.float32)).all()
