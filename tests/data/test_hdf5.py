from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from emorl.data import Batch, BatchSampler, check, collate, convert, open_dataset
from emorl.data.base import ObjectDataset
from emorl.data.readers.hdf5 import HDF5Dataset


def arrays(count: int = 6, entities: int = 3) -> dict[str, np.ndarray]:
    """Random images 5 x 4 with disjoint masks, in EfficientMORL's layout."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, entities, (count, 1, 5, 4, 1))
    masks = labels == np.arange(entities)[None, :, None, None, None]
    return {
        "imgs": rng.integers(0, 256, (count, 5, 4, 3), np.uint8),
        "masks": (masks * 255).astype(np.uint8),
        "labels": labels[..., 0],
    }


def write(path: Path, split: str = "train", **data: Any) -> Path:
    with h5py.File(path, "a") as file:
        for name, values in data.items():
            file.create_dataset(f"{split}/{name}", data=values)
    return path


@pytest.mark.parametrize("image_type", ["uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("mask_scale", [1, 255])
@pytest.mark.parametrize("mask_type", ["uint8", "bool", "uint16", "float32"])
def test_any_number_type_is_read(
    image_type: str, mask_scale: int, mask_type: str, tmp_path: Path
) -> None:
    data = arrays()
    masks = (data["masks"] // 255 * mask_scale).astype(mask_type)
    path = write(tmp_path / "a.h5", imgs=data["imgs"].astype(image_type), masks=masks)
    batch = open_dataset(path).__getitems__([4, 1])
    assert batch.mask is not None
    assert batch.image.dtype == batch.mask.dtype == torch.uint8
    assert (batch.image.permute(0, 2, 3, 1).numpy() == data["imgs"][[4, 1]]).all()
    assert (batch.mask.numpy() == data["labels"][[4, 1]]).all()
    assert batch.index.tolist() == [4, 1]
    assert batch.factors == {}


@pytest.mark.parametrize("image_type", ["float16", "float32", "float64"])
def test_floats_up_to_one_are_told_apart(image_type: str, tmp_path: Path) -> None:
    data = arrays()
    path = write(tmp_path / "a.h5", imgs=(data["imgs"] / 255).astype(image_type))
    batch = open_dataset(path).__getitems__(range(6))
    assert (batch.image.permute(0, 2, 3, 1).numpy() == data["imgs"]).all()
    assert batch.mask is None


@pytest.mark.parametrize("chunks", [None, (1, 5, 4, 3), (4, 2, 4, 1), (6, 5, 4, 3)], ids=str)
def test_any_chunking_and_order_is_read(chunks: tuple[int, ...] | None, tmp_path: Path) -> None:
    data = arrays()
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        compression = None if chunks is None else "gzip"
        file.create_dataset("train/imgs", data=data["imgs"], chunks=chunks, compression=compression)
    dataset = open_dataset(path)
    for indices in ([0], [5, 0, 3, 3], [1, 2, 3], [3, 2, 1]):
        image = dataset.__getitems__(indices).image.permute(0, 2, 3, 1).numpy()
        assert (image == data["imgs"][indices]).all()


def test_one_channel_is_grey(tmp_path: Path) -> None:
    data = arrays()
    image = open_dataset(write(tmp_path / "a.h5", imgs=data["imgs"][..., :1]))[2]["image"]
    assert (image.numpy() == data["imgs"][2, ..., 0]).all()
    assert image.shape == (3, 5, 4)


def test_clevr_columns_have_their_names(tmp_path: Path) -> None:
    factors = np.random.default_rng(0).random((6, 3, 9))
    path = write(tmp_path / "a.h5", imgs=arrays()["imgs"], factors=factors)
    named = open_dataset(path)[1]["factors"]
    columns = "x y z rotation size material shape color visibility".split()  # noqa: SIM905
    assert list(named) == columns
    for column, name in enumerate(columns):
        assert (named[name].numpy() == factors[1, :, column].astype(np.float32)).all()


def test_unnamed_columns_are_kept_together(tmp_path: Path) -> None:
    factors = np.random.default_rng(0).random((6, 3, 5), np.float32)
    path = write(tmp_path / "a.h5", imgs=arrays()["imgs"], factors=factors)
    named = open_dataset(path)[1]["factors"]
    assert list(named) == ["factors"]
    assert (named["factors"].numpy() == factors[1]).all()


def test_splits_are_groups(tmp_path: Path) -> None:
    data = arrays()
    path = write(tmp_path / "a.h5", imgs=data["imgs"][:4])
    write(path, "test", imgs=data["imgs"][4:])
    assert len(open_dataset(path)) == 4
    image = open_dataset(path, split="test")[0]["image"].permute(1, 2, 0)
    assert (image.numpy() == data["imgs"][4]).all()
    with pytest.raises(ValueError, match=r"a\.h5: expected a group 'val', got test/, train/"):
        open_dataset(path, split="val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imgs": None}, "train/imgs, got masks"),
        ({"imgs": np.zeros((6, 5, 4, 4), np.uint8)}, r"imgs \[N, H, W, 1 or 3\], got \[6, "),
        ({"imgs": np.zeros((0, 5, 4, 3))}, r"imgs .*, got \[0, 5, 4, 3\]"),
        (
            {"imgs": np.full((6, 5, 4, 3), -1.0)},
            r"values from 0 to 255 \(as EfficientMORL's .* float64\), got -1 to -1; store",
        ),
        ({"imgs": np.full((6, 5, 4, 3), 256)}, "values .* int64\\), got 256 to 256; store"),
        ({"imgs": np.full((6, 5, 4, 3), np.nan)}, "values .*, got NaN; mend that"),
        ({"masks": np.zeros((6, 3, 4, 5, 1))}, r"masks \[6, E, 5, 4, 1\], got \[6, 3, 4, 5, 1\]"),
        ({"masks": np.zeros((6, 4, 5))}, r"masks \[6, E, 5, 4, 1\], got \[6, 4, 5\]; a label map"),
        ({"factors": np.zeros((5, 3, 9))}, r"factors \[6, E, F\], got \[5, 3, 9\]"),
    ],
    ids=["no imgs", "RGBA", "empty", "negative", "large", "nan", "transposed", "labels", "factors"],
)
def test_other_layouts_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = {key: values for key, values in arrays().items() if key != "labels"} | change
    path = write(tmp_path / "a.h5", **{k: v for k, v in data.items() if v is not None})
    with pytest.raises(ValueError, match=rf"a\.h5: (image 0: )?expected {message}"):
        open_dataset(path)


def test_a_file_without_groups_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["train"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"expected train/imgs, got a data set \[3\]"):
        open_dataset(path)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", imgs=np.zeros((500, 5, 4, 3), np.uint8))
    content = path.read_bytes()
    for length in range(8, len(content), 997):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.h5: not a readable HDF5 file") as caught:
            open_dataset(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image", [1, 35], ids=["while opening", "while reading"])
def test_a_damaged_image_is_named(image: int, tmp_path: Path) -> None:
    path = convert(open_dataset("tetrominoes"), tmp_path / "a.h5", 36)
    with h5py.File(path) as file:
        start = file["train/imgs"].id.get_chunk_info(image).byte_offset
    content = bytearray(path.read_bytes())
    content[start + 2 : start + 20] = bytes(18)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.h5: /train/imgs: "):
        open_dataset(path).__getitems__([0, image])


def converted(tmp_path: Path, images: int = 40) -> tuple[ObjectDataset, ObjectDataset]:
    source = open_dataset("tetrominoes", seed=4)
    path = convert(source, tmp_path / "new" / "tetrominoes.h5", images)
    return source, open_dataset(path)


def assert_same(first: Batch, second: Batch) -> None:
    assert first.mask is not None
    assert second.mask is not None
    assert first.factors.keys() == second.factors.keys()
    pairs = [(first.factors[name], second.factors[name]) for name in first.factors]
    pairs += [(first.image, second.image), (first.mask, second.mask), (first.index, second.index)]
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_a_converted_data_set_reads_back_exactly(tmp_path: Path) -> None:
    source, stored = converted(tmp_path, images=150)
    assert len(stored) == 150
    indices = torch.randperm(150).tolist()
    assert_same(stored.__getitems__(indices), source.__getitems__(indices))


def test_converted_files_have_the_published_layout(tmp_path: Path) -> None:
    source, _ = converted(tmp_path)
    batch = source.__getitems__(range(40))
    assert batch.mask is not None
    with h5py.File(tmp_path / "new" / "tetrominoes.h5") as file:
        group = file["train"]
        assert group["imgs"].shape == (40, 35, 35, 3)
        assert group["masks"].shape == (40, 4, 35, 35, 1)
        assert (group["masks"][:].argmax(1)[..., 0] == batch.mask[:, 0].numpy()).all()
        assert set(np.unique(group["masks"][:])) == {0, 255}
        columns = ["x", "y", "shape", "color", "color", "color", "visibility"]
        assert list(group["factors"].attrs["columns"]) == columns


def test_published_records_survive_conversion(fixtures_dir: Path, tmp_path: Path) -> None:
    source = open_dataset(fixtures_dir / "data" / "tetrominoes_mini.tfrecords")
    stored = open_dataset(convert(source, tmp_path / "a.h5", split="test"), split="test")
    assert len(stored) == 10
    assert_same(stored.__getitems__(range(10)), source.__getitems__(range(10)))


class Growing(ObjectDataset):
    """Images 2 x 2 without factors; image i has labels up to i // 40."""

    name, image_size = "growing", (2, 2)

    def __len__(self) -> int:
        return 130

    def __getitems__(self, indices: Any) -> Batch:
        index = torch.tensor(list(indices))
        mask = (index // 40).byte()[:, None, None, None] * torch.eye(2, dtype=torch.uint8)
        return Batch(torch.zeros(len(index), 3, 2, 2, dtype=torch.uint8), mask, {}, index)


def test_later_images_may_have_more_objects(tmp_path: Path) -> None:
    stored = open_dataset(convert(Growing(), tmp_path / "a.h5"))
    assert_same(stored.__getitems__(range(130)), Growing().__getitems__(range(130)))


class Failing(Growing):
    def __getitems__(self, indices: Any) -> Batch:
        if max(indices) > 100:
            raise RuntimeError("out of ink")
        return super().__getitems__(indices)


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of ink"):
        convert(Failing(), tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def test_conversions_that_cannot_be_done_are_refused(tmp_path: Path) -> None:
    endless, path = open_dataset("tetrominoes"), tmp_path / "a.h5"
    with pytest.raises(ValueError, match="convert: expected a number of images: tetrominoes has"):
        convert(endless, path)
    with pytest.raises(ValueError, match="images of tetrominoes, got 999999999999999"):
        convert(endless, path, 999_999_999_999_999)
    with pytest.raises(ValueError, match="convert: expected a number of images from 1, got 0"):
        convert(endless, path, 0)
    with pytest.raises(ValueError, match="convert: expected up to 130 images of growing, got 131"):
        convert(Growing(), path, 131)
    path.touch()
    with pytest.raises(ValueError, match=r"a\.h5: already exists"):
        convert(Growing(), path)


@pytest.mark.parametrize(("start_method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_open_their_own_handles(start_method: str, workers: int, tmp_path: Path) -> None:
    source, stored = converted(tmp_path)
    stored[0]  # leaves a handle open in this process
    loader = DataLoader(
        stored,
        batch_sampler=BatchSampler(40, 5, shuffle=False),
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=multiprocessing.get_context(start_method),
    )
    for step, batch in zip(range(16), loader, strict=False):
        first = 5 * step % 40
        assert_same(batch, source.__getitems__(range(first, first + 5)))


def test_an_open_data_set_can_be_pickled(tmp_path: Path) -> None:
    source, stored = converted(tmp_path)
    stored[3]
    copy = pickle.loads(pickle.dumps(stored))
    assert isinstance(copy, HDF5Dataset)
    assert_same(copy.__getitems__([3, 1]), source.__getitems__([3, 1]))


def test_check_finds_nothing_wrong_with_good_files(tmp_path: Path) -> None:
    _, stored = converted(tmp_path)
    assert isinstance(stored, HDF5Dataset)
    report = check(stored.path, images=33)
    assert "tetrominoes: 40 images, 35x35 pixels; checked 33" in report
    assert "objects: 3 in 33 images" in report
    assert "color [4, 3]" in report
    assert report.endswith("problems: none")


def test_check_names_what_is_wrong(tmp_path: Path) -> None:
    _, stored = converted(tmp_path)
    assert isinstance(stored, HDF5Dataset)
    with h5py.File(stored.path, "a") as file:
        group = file["train"]
        group["imgs"][0] = 7
        group["masks"][1, 0, 4, 4] = group["masks"][1, 1, 4, 4] = 255
        group["masks"][2, :, 6, 6] = 0
        group["factors"][3, 0, 0] = np.inf
        group["factors"][4, 3, -1] = 0
        group["masks"][5, 3] = 0
        group.copy("imgs", file.create_group("test"), name="imgs")
    report = check(stored.path)
    for line in [
        "  a single colour: 1 of 40 images",
        "  factor x is not finite: 1 of 40 images",
        "hidden: an object or more in 1 image, by their visibility, which --max-objects counts\n",
        "  pixels of an object that is not visible: 1 of 40 images",
        "  pixels that no mask covers: 2 of 40 images",
        "  pixels that several masks cover: 1 of 40 images",
        "  not what its factors render to: ",
        "objects: 2 in 1 image, 3 in 39 images (with a pixel or more)",
        "objects: no masks",
    ]:
        assert line in report
    assert report.startswith("test:\n")
    assert "\n\ntrain:\n" in report


def test_check_reads_every_kind_of_data(fixtures_dir: Path) -> None:
    records = fixtures_dir / "data" / "tetrominoes_mini.tfrecords"
    for spec in ("tetrominoes", "tetrominoes-real10", records):
        assert "checked 10\n" in check(spec, 10)
        assert check(spec, 10).endswith("problems: none")
    with pytest.raises(ValueError, match="check: expected at least 1 image, got 0"):
        check("tetrominoes", 0)


def test_images_alone_are_those_of_batches_and_read_nothing_else(tmp_path, monkeypatch):
    path = convert(open_dataset("tetrominoes"), tmp_path / "a.h5", 8)
    indices = [5, 2, 7]
    for dataset in (open_dataset(path), open_dataset(path, limit=8, size=20)):
        expected = dataset[2:8].image[[3, 0, 5]]
        with monkeypatch.context() as patch:
            patch.setattr(HDF5Dataset, "_masks", None)
            patch.setattr(HDF5Dataset, "_factors", None)
            assert torch.equal(dataset.read_images(indices), expected)
    with pytest.raises(IndexError):
        dataset.read_images([8])
