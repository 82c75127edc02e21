"""HDF5 files in others' layouts; tests/data/test_layouts.py reads each exactly."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from layout_testing import COUNT, scenes

from emorl.data import open_dataset


def stored(path: Path, masks: np.ndarray, **attributes: int) -> Path:
    with h5py.File(path, "w") as file:
        file["imgs"] = scenes().images
        file["masks"] = masks
        file["masks"].attrs.update(attributes)
    return path


@pytest.mark.parametrize("axes", [(), (-1,), (1,), (1, -1)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_label_maps_are_told_from_masks_by_content(axes, dtype, tmp_path):
    """[N, H, W], [N, H, W, 1], [N, 1, H, W] and [N, 1, H, W, 1]."""
    labels = scenes().labels
    assert labels is not None
    path = stored(tmp_path / "a.h5", np.expand_dims(labels, axes).astype(dtype))
    mask = open_dataset(path).__getitems__([4, 1, 2]).mask
    assert mask.dtype == torch.uint8
    assert (mask[:, 0].numpy() == labels[[4, 1, 2]]).all()


@pytest.mark.parametrize("shape", ["NEHW1", "NE1HW", "NEHW", "NHWE1", "NHWE"])
def test_masks_may_have_their_axes_in_any_published_order(shape, tmp_path):
    made = scenes()
    masks = np.moveaxis(made.entity_masks, 1, shape.replace("1", "").index("E"))
    for position in [i for i, axis in enumerate(shape) if axis == "1"]:
        masks = np.expand_dims(masks, position)
    dataset = open_dataset(stored(tmp_path / "a.h5", masks))
    batch, entity_masks = dataset.read([3, 0])
    assert (batch.mask[:, 0].numpy() == made.labels[[3, 0]]).all()
    assert (entity_masks.numpy() == made.entity_masks[[3, 0]]).all()


def test_the_mask_of_a_single_entity_covers_all(tmp_path):
    """It has one value, unlike a label map; a label map without an object has the value 0."""
    ones = np.full((COUNT, 1, 9, 8, 1), 255, np.uint8)
    assert (open_dataset(stored(tmp_path / "a.h5", ones))[0]["mask"] == 0).all()
    labels = np.zeros((COUNT, 1, 9, 8, 1), np.uint8)
    labels[-1, 0, 0, 0] = 7
    assert open_dataset(stored(tmp_path / "b.h5", labels))[COUNT - 1]["mask"].max() == 7


def test_many_labels_are_int32_from_the_first_image_on(tmp_path):
    labels = np.zeros((COUNT, 9, 8), np.uint16)
    labels[-1, 0, 0] = 1000
    dataset = open_dataset(stored(tmp_path / "a.h5", labels))
    assert dataset[0]["mask"].dtype == torch.int32
    assert dataset[COUNT - 1]["mask"].max() == 1000
    told = open_dataset(stored(tmp_path / "b.h5", labels, labels=256))
    assert told[0]["mask"].dtype == torch.uint8
    with pytest.raises(ValueError, match=r"b\.h5: image 5: expected labels from 0 to 255, got 0"):
        told.__getitems__([0, 5])


@pytest.mark.parametrize("value", [-1, 0.5, np.nan])
def test_what_is_no_label_stops_with_its_image(value, tmp_path):
    labels = scenes().labels.astype(np.float32)
    labels[2, 3, 3] = value
    dataset = open_dataset(stored(tmp_path / "a.h5", labels))
    with pytest.raises(ValueError, match=r"a\.h5: image 2: expected labels from 0 to 255, got "):
        dataset.__getitems__([1, 2])


def test_others_than_factors_are_left_alone(tmp_path):
    """Names are no factors by themselves: a row must hold a number for each entity."""
    path = tmp_path / "a.h5"
    made = scenes()
    with h5py.File(path, "w") as file:
        file["image"], file["mask"] = made.images, made.entity_masks
        file["camera"] = np.zeros((COUNT, 4, 4))
        file["names"] = np.full((COUNT, 3), b"cube")
        file["size"] = np.arange(3 * COUNT).reshape(COUNT, 3)
        file["folder/x"] = np.zeros((COUNT, 3))
    assert open_dataset(path)[1]["factors"]["size"].tolist() == [3, 4, 5]
    assert open_dataset(path)[1]["factors"].keys() == {"size"}


def test_a_chunk_larger_than_all_images_is_refused(tmp_path):
    """It would be inflated as a whole."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        options = {"chunks": (320_000, 9, 8, 3), "maxshape": (None, 9, 8, 3), "compression": "lzf"}
        images = file.create_dataset("imgs", (2, 9, 8, 3), "u1", **options)
        images[:] = 7
    with pytest.raises(ValueError, match=r"a\.h5: /imgs has chunks of 69.1 MB, but declares only"):
        open_dataset(path)


def test_images_that_were_never_written_are_not_black(tmp_path: Path) -> None:
    """Two of four chunks; and a virtual data set, which reads another file or nothing."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset(
            "train/imgs", (8, 5, 4, 3), "u1", chunks=(2, 5, 4, 3), compression="gzip"
        )
        images[:4] = 200
    with pytest.raises(ValueError, match=r"a\.h5: /train/imgs: 2 of 4 chunks are stored; the oth"):
        open_dataset(tmp_path / "a.h5")
    virtual = h5py.VirtualLayout((8, 5, 4, 3), "u1")
    virtual[:] = h5py.VirtualSource(str(tmp_path / "b.h5"), "x", (8, 5, 4, 3))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("train/imgs", virtual)
    with pytest.raises(ValueError, match=r"v\.h5: .*expected its source .*b\.h5, got no such file"):
        open_dataset(tmp_path / "v.h5")
    h5py.File(tmp_path / "b.h5", "w").close()
    with pytest.raises(ValueError, match=r"v\.h5: /train/imgs: expected x in its source .*b\.h5"):
        open_dataset(tmp_path / "v.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("x", (8, 5, 4, 3), "u1", chunks=(2, 5, 4, 3))[:2] = 200
    with pytest.raises(ValueError, match=r"v\.h5: /x: 1 of 4 chunks are stored"):
        open_dataset(tmp_path / "v.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = np.full((8, 5, 4, 3), 200, np.uint8)
    assert (open_dataset(tmp_path / "v.h5")[:].image == 200).all()


def test_labels_that_were_never_written_are_not_background(tmp_path: Path) -> None:
    """Masks of entities that are not there may be left out, but not all of an image's."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train/imgs"] = np.full((3, 5, 4, 3), 200, np.uint8)
        small = {"compression": "gzip"}
        shape = (3, 2, 5, 4, 1)
        masks = file.create_dataset("train/masks", shape, "u1", chunks=(1, 1, 5, 4, 1), **small)
        masks[0] = 255
        masks[1:, 0] = 255
    assert open_dataset(path)[2]["mask"].unique().tolist() == [0]
    with h5py.File(path, "a") as file:
        del file["train/masks"]
        labels = file.create_dataset("train/masks", (3, 5, 4), "u1", chunks=(1, 5, 4), **small)
        labels[:2] = 1
    with pytest.raises(ValueError, match=r"a\.h5: /train/masks: 2 of 3 chunks are stored; the oth"):
        open_dataset(path)
    with h5py.File(path, "a") as file:
        file["train/masks"][2] = 0
        factors = file.create_dataset("train/factors", (3, 2, 9), "f4", chunks=(1, 2, 9), **small)
        factors[1] = 1
    with pytest.raises(ValueError, match=r"a\.h5: /train/factors: 1 of 3 chunks are stored"):
        open_dataset(path)


def test_a_file_is_also_what_its_links_and_sources_hold(tmp_path: Path) -> None:
    path, images = tmp_path / "a.h5", np.full((3, 5, 4, 3), 200, np.uint8)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = images
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["y"] = np.zeros((3, 5, 4), np.uint8)
    virtual = h5py.VirtualLayout(images.shape, "u1")
    virtual[:] = h5py.VirtualSource(str(tmp_path / "b.h5"), "x", images.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("train/imgs", virtual)
        file["train/masks"] = h5py.ExternalLink(str(tmp_path / "c.h5"), "y")
    assert open_dataset(path).files() == [path, tmp_path / "b.h5", tmp_path / "c.h5"]
