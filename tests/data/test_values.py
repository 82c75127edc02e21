"""What the numbers of stored images mean: who decides it, and what contradicts it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from test_tfrecord import example, feature, field, framed, tiny

from emorl.data import check, convert, open_dataset
from emorl.data.values import BYTES, LOOKED_AT, OVERSHOOT, UNIT, decide, value_range

SHAPE = (40, 4, 5, 3)
PICTURES = np.random.default_rng(0).integers(2, 256, SHAPE)  # no value that both ranges know
BITS = PICTURES % 2


def write(path: Path, images: np.ndarray, *, masks: bool = False, **attributes: Any) -> Path:
    """An HDF5 file, of EfficientMORL's layout if it has masks; attributes by their holder."""
    with h5py.File(path, "w") as file:
        file["train/imgs"] = images
        if masks:
            entity = np.arange(len(images))[:, None, None, None, None] % 2
            labels = np.broadcast_to(entity, (len(images), 1, *images.shape[1:3], 1))
            file["train/masks"] = (labels == np.arange(2)[None, :, None, None, None]) * np.uint8(
                255
            )
        holders = {"file": file, "split": file["train"], "imgs": file["train/imgs"]}
        for holder, value in attributes.items():
            holders[holder].attrs["value_range"] = value
    return path


def read(path: Path, **options: Any) -> np.ndarray:
    dataset = open_dataset(path, **options)
    return dataset.__getitems__(range(len(dataset))).image.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("asked", "attribute", "layout", "dtype", "expected"),
    [
        (UNIT, [0, 255], "L", "float32", UNIT),
        (BYTES, [0, 1], None, "float32", BYTES),
        (None, [0, 255], None, "float32", BYTES),
        (None, [0.0, 1.0], "L", "uint8", UNIT),
        (None, None, "L", "float32", BYTES),
        (None, None, "L", "bool", BYTES),
        (None, None, None, "bool", UNIT),
        (None, None, None, "uint8", BYTES),
        (None, None, None, "int64", BYTES),
        (None, None, None, "float16", UNIT),
        (None, None, None, "float64", UNIT),
    ],
)
def test_the_first_that_tells_decides(asked, attribute, layout, dtype, expected):
    assert decide(asked, attribute, layout, np.dtype(dtype)).range == expected


@pytest.mark.parametrize("given", [[0, 2], [1, 255], [0, 1, 2], "x", 1, [[0], [0, 1]], b"01", None])
def test_other_ranges_are_refused(given):
    with pytest.raises(ValueError, match=r"^here: expected \[0, 1\] or \[0, 255\], got "):
        value_range(given, "here")


@pytest.mark.parametrize("dtype", ["complex64", "S3", "O"])
def test_images_are_real_numbers(dtype):
    with pytest.raises(ValueError, match="expected images of bool, integers or floats, got"):
        decide(None, None, None, np.dtype(dtype))


@pytest.mark.parametrize("asked", [None, [0, 1]], ids=["by dtype", "asked"])
def test_an_overshoot_of_floats_is_cut_off(asked, tmp_path):
    """One 1.004 once made the images black."""
    images = PICTURES / 255
    images[7, 0, 0, 0], images[8, 0, 0, 0] = 1.004, -0.004
    path = write(tmp_path / "a.h5", images.astype(np.float32))
    expected = PICTURES.copy()
    expected[7, 0, 0, 0], expected[8, 0, 0, 0] = 255, 0
    assert (read(path, value_range=asked) == expected).all()


@pytest.mark.parametrize("high", [True, False], ids=["above", "below"])
def test_the_overshoot_is_what_bicubic_resizing_has_at_most(high, tmp_path):
    weights = np.array([-1, 9, 9, -1]) / 16  # halfway between two pixels
    product = np.outer(weights, weights)
    worst = (product > 0) == high  # the image whose resized pixel is farthest outside of [0, 1]
    resized = float((product * worst).sum())
    assert resized == (1 + OVERSHOOT if high else -OVERSHOOT)
    images = np.full(SHAPE, 0.5, np.float32)
    images[3, 0, 0, 0] = resized
    assert read(write(tmp_path / "a.h5", images))[3, 0, 0, 0] == (255 if high else 0)
    images[3, 0, 0, 0] = resized * 1.001
    with pytest.raises(ValueError, match=r"b\.h5: image 3: expected values from 0 to 1 "):
        read(write(tmp_path / "b.h5", images))


def test_floats_that_begin_dark_are_not_saturated(tmp_path):
    images = PICTURES.astype(np.float32)
    images[:35] = 0
    path = write(tmp_path / "a.h5", images, masks=True)
    assert (read(path) == images).all(), "the layout says 0 to 255"
    path = write(tmp_path / "b.h5", images)
    dataset = open_dataset(path)
    assert (dataset[3]["image"] == 0).all()
    with pytest.raises(
        ValueError, match=r"b\.h5: image 36: .*stored as float32\), got .* to 2"
    ) as e:
        dataset.__getitems__([2, 36, 37])
    assert "; if the images go from 0 to 255, say so: value_range [0, 255] (a run's " in str(
        e.value
    )
    assert (read(path, value_range=[0, 255]) == images).all()


@pytest.mark.parametrize("masks", [False, True], ids=["images", "layout"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32"])
def test_bits_are_never_nearly_black(dtype, masks, tmp_path):
    path = write(tmp_path / "a.h5", BITS.astype(dtype), masks=masks)
    assert (read(path, value_range=[0, 1]) == 255 * BITS).all()
    if masks or dtype in ("uint8", "int64"):
        with pytest.raises(
            ValueError, match=r"a\.h5: .* at most 1 in the first 40 .*value_range: \[0, 1"
        ):
            open_dataset(path)
        if dtype != "bool":
            assert (read(path, value_range=[0, 255]) == BITS).all()
    else:
        assert (read(path) == 255 * BITS).all()


def test_unit_floats_of_the_layout_are_refused_in_spite_of_an_overshoot(tmp_path):
    images = PICTURES / 255
    images[9, 0, 0, 0] = 1.004
    path = write(tmp_path / "a.h5", images, masks=True)
    with pytest.raises(ValueError, match=r"at most 1\.004 in the first 40 images; .* value_range"):
        open_dataset(path)
    assert (read(path, value_range=[0, 1])[10:] == PICTURES[10:]).all()


def test_a_thousand_images_are_looked_at(tmp_path):
    images = np.zeros((LOOKED_AT + 5, 1, 2, 3), np.uint8)
    images[LOOKED_AT - 1] = 1
    with pytest.raises(ValueError, match="at most 1 in the first 1000 images"):
        open_dataset(write(tmp_path / "a.h5", images, masks=True))
    images[LOOKED_AT - 1, 0, 0, 0] = 2
    assert (read(write(tmp_path / "b.h5", images, masks=True)) == images).all()
    images[LOOKED_AT - 1] = 0
    assert (read(write(tmp_path / "c.h5", images, masks=True)) == 0).all(), "black is black"


@pytest.mark.parametrize("holder", ["imgs", "split", "file"])
def test_an_attribute_of_the_file_decides(holder, tmp_path):
    path = write(tmp_path / "a.h5", BITS.astype(np.uint8), masks=True, **{holder: [0, 1]})
    dataset = open_dataset(path)
    assert (read(path) == 255 * BITS).all()
    assert dataset.value_range == UNIT
    wrong = write(tmp_path / "b.h5", BITS.astype(np.uint8), **{holder: [0, 65535]})
    with pytest.raises(ValueError, match=r"b\.h5: attribute value_range: expected \[0, 1\] or "):
        open_dataset(wrong)


@pytest.mark.parametrize("masks", [False, True], ids=["images", "layout"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 6e4], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_no_pixel_stops_with_its_index(dtype, value, masks, tmp_path):
    images = (PICTURES / (1 if masks else 255)).astype(dtype)
    images[36, 2, 3, 1] = value
    dataset = open_dataset(write(tmp_path / "a.h5", images, masks=masks))
    dataset.__getitems__([35, 37])
    with pytest.raises(ValueError, match=r"a\.h5: image 36: expected values .*, got .*; ") as error:
        dataset.__getitems__([35, 36])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("dtype", "value"), [("int16", -1), ("uint16", 256), ("uint64", 2**63)])
def test_integers_beyond_a_byte_stop_with_their_index(dtype, value, tmp_path):
    images = PICTURES.astype(dtype)
    images[36, 2, 3, 1] = value
    dataset = open_dataset(write(tmp_path / "a.h5", images))
    with pytest.raises(ValueError, match=r"a\.h5: image 36: .*; store the images as 0 to 255"):
        dataset[36]


def test_infinite_masks_stop_with_their_index(tmp_path):
    path = write(tmp_path / "a.h5", PICTURES.astype(np.uint8), masks=True)
    with h5py.File(path, "a") as file:
        masks = file["train/masks"][:].astype(np.float32)
        masks[36, 0, 1, 1] = np.nan
        del file["train/masks"]
        file["train/masks"] = masks
    with pytest.raises(ValueError, match=r"a\.h5: image 36: expected masks of finite numbers"):
        open_dataset(path).__getitems__([2, 36])


def test_a_converted_file_says_what_it_holds(tmp_path):
    source = write(tmp_path / "a.h5", (BITS * 0.004).astype(np.float32))
    copy = convert(open_dataset(source), tmp_path / "b.h5")
    with h5py.File(copy) as file:
        assert file["train/imgs"].attrs["value_range"].tolist() == [0, 255]
    assert (read(copy) == BITS).all(), "as dark as it is"


def record_file(path: Path, *images: bytes) -> Path:
    """TFRecords of Tetrominoes' features with these serialised images."""
    records = []
    for image in images:
        features = {key: feature(values) for key, values in tiny(9).items()}
        records.append(framed(example({**features, "image": image})))
    path.write_bytes(gzip.compress(b"".join(records)))
    return path


def floats(value: float) -> bytes:
    return feature(np.full(3 * 35 * 35, value, np.float32))


def test_records_hold_0_to_255_whatever_the_dtype(tmp_path):
    integers = field(3, field(1, bytes([100]) * (3 * 35 * 35)))
    path = record_file(tmp_path / "a", floats(0), floats(200.4), integers)
    assert read(path)[:, 0, 0, 0].tolist() == [0, 200, 100]
    with pytest.raises(
        ValueError, match=r"b: .*DeepMind's records.* at most 1 in the first 2 .*value_r"
    ):
        open_dataset(record_file(tmp_path / "b", floats(0.5), floats(1)))
    assert read(tmp_path / "b", value_range=[0, 1])[:, 0, 0, 0].tolist() == [128, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf, 256.0, -1.0], ids=str)
def test_records_out_of_range_stop_with_their_number(value, tmp_path):
    dataset = open_dataset(record_file(tmp_path / "a", floats(9), floats(9), floats(value)))
    with pytest.raises(ValueError, match=r"a: record 2: expected values from 0 to 255"):
        dataset.__getitems__([0, 2])


def test_only_check_all_reads_a_whole_file(tmp_path):
    images = np.full((1100, 1, 2, 3), 0.5)
    images[1099] = np.nan
    path = write(tmp_path / "a.h5", images)
    assert "checked 1000\n" in check(path)
    report = check(path, None)
    assert "cannot be read: 1 of 1100 images" in report
    assert "a.h5: image 1099: expected" in report
    images[1099] = 1
    report = check(write(path, images), None)
    assert "checked 1100\n" in report
    assert "values: 128 to 255; the file's are values from 0 to 1 (stored as" in report
    with pytest.raises(
        ValueError, match="check: expected a number of images, since tetrominoes has no"
    ):
        check("tetrominoes", None)


def test_a_generator_has_no_range_to_be_asked_for():
    with pytest.raises(
        ValueError, match="value_range: expected none for the generator tetrominoes"
    ):
        open_dataset("tetrominoes", value_range=[0, 1])
