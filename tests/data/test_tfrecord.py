from __future__ import annotations

import contextlib
import gzip
import pickle
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emorl.data import open_dataset
from emorl.data.readers import tfrecord
from emorl.data.readers.tfrecord import TFRecordDataset
from emorl.data.readers.tfrecord_container import RecordReader, masked_checksum
from emorl.data.readers.tfrecord_example import parse_example


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


ONE_BYTE = [field(1, bytes([value])) for value in range(256)]


def feature(values: np.ndarray) -> bytes:
    if values.dtype == np.float32:
        return field(2, field(1, values.astype("<f4").tobytes()))
    return field(1, b"".join(ONE_BYTE[value] for value in values.tobytes()))


def example(features: dict[str, bytes]) -> bytes:
    entries = [field(1, key.encode()) + field(2, value) for key, value in features.items()]
    return field(1, b"".join(field(1, entry) for entry in entries))


def framed(payload: bytes) -> bytes:
    length = struct.pack("<Q", len(payload))
    sums = [struct.pack("<I", masked_checksum(part)) for part in (length, payload)]
    return length + sums[0] + payload + sums[1]


def tiny(value: int) -> dict[str, np.ndarray]:
    """A record with Tetrominoes' features, two entities and nothing but `value` in them."""
    masks = np.zeros((2, 35, 35, 1), np.uint8)
    masks[1, value : value + 3] = 255
    masks[0] = 255 - masks[1]
    floats = {key: np.full(2, value, np.float32) for key in ("x", "y", "shape", "visibility")}
    image = np.full((35, 35, 3), value, np.uint8)
    return {"image": image, "mask": masks, "color": np.full((2, 3), value, np.float32), **floats}


def serialised(record: dict[str, np.ndarray]) -> bytes:
    return example({key: feature(values) for key, values in record.items()})


@pytest.fixture(scope="session")
def published(fixtures_dir: Path) -> Path:
    return fixtures_dir / "data" / "tetrominoes_mini.tfrecords"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.tfrecords"
    path.write_bytes(b"".join(framed(serialised(tiny(value))) for value in range(4)))
    return path


def test_checksum_is_the_masked_crc32c() -> None:
    # CRC-32C of "123456789" is E3069283 (the check value of the CRC catalogue).
    rotated = (0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF
    assert masked_checksum(b"123456789") == (rotated + 0xA282EAD8) & 0xFFFFFFFF


def test_published_records_come_out_exactly(published: Path) -> None:
    expected = np.load(published.with_name("tetrominoes_mini_train10.npz"))
    dataset = open_dataset(published)
    assert (dataset.name, dataset.image_size, len(dataset)) == ("tetrominoes", (35, 35), 10)
    assert isinstance(dataset, TFRecordDataset)
    batch, masks = dataset.read([3, 0, 9, 3])
    rows = [3, 0, 9, 3]
    assert masks is not None
    assert batch.mask is not None
    assert (batch.image.permute(0, 2, 3, 1).numpy() == expected["image"][rows]).all()
    assert (masks.numpy() == expected["mask"][rows]).all()
    assert (batch.mask[:, 0].numpy() == expected["mask"][rows].argmax(1)).all()
    assert batch.factors.keys() == {"x", "y", "shape", "color", "visibility"}
    for name, values in batch.factors.items():
        assert values.dtype == torch.float32
        assert (values.numpy() == expected[name][rows]).all()
    assert batch.index.tolist() == rows


@pytest.mark.parametrize(
    "compress", [bytes, gzip.compress, zlib.compress], ids=["plain", "gzip", "zlib"]
)
def test_any_compression_is_read(compress: Any, published: Path, tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(compress(gzip.decompress(published.read_bytes())))
    copy, original = open_dataset(path), open_dataset(published)
    assert torch.equal(copy.__getitems__(range(10)).image, original.__getitems__(range(10)).image)


def test_joined_gzip_files_are_one(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice"
    path.write_bytes(published.read_bytes() * 2)
    dataset = open_dataset(path)
    assert len(dataset) == 20
    assert torch.equal(dataset[3]["image"], dataset[13]["image"])


def test_multi_dsprites_masks_are_transposed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (64, 64))
    record: dict[str, np.ndarray] = {
        key: rng.random(6, np.float32)
        for key in ("x", "y", "shape", "visibility", "orientation", "scale")
    }
    record["color"] = rng.random((6, 3), np.float32)
    record["image"] = rng.integers(0, 256, (64, 64, 3), np.uint8)
    record["mask"] = ((labels[..., None] == np.arange(6)) * 255).astype(np.uint8)[..., None]
    path = tmp_path / "multi_dsprites"
    path.write_bytes(gzip.compress(framed(serialised(record))))
    dataset = open_dataset(path)
    sample = dataset[0]
    assert (dataset.name, dataset.image_size) == ("multi-dsprites", (64, 64))
    assert (sample["mask"][0].numpy() == labels).all()
    assert (sample["image"].permute(1, 2, 0).numpy() == record["image"]).all()
    assert (sample["factors"]["color"].numpy() == record["color"]).all()
    assert (sample["factors"]["scale"].numpy() == record["scale"]).all()


def test_binarised_images_are_shown_as_grey(tmp_path: Path) -> None:
    keys = ("x", "y", "shape", "visibility", "orientation", "scale", "color")
    record: dict[str, np.ndarray] = {key: np.ones(4, np.float32) for key in keys}
    record["image"] = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    record["mask"] = np.zeros((64, 64, 4, 1), np.uint8)
    path = tmp_path / "binarised"
    path.write_bytes(framed(serialised(record)))
    image = open_dataset(path)[0]["image"]
    assert image.shape == (3, 64, 64)
    assert (image.numpy() == record["image"][..., 0]).all()


def clevr_record() -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 11, (240, 320)).astype(np.uint8)
    record: dict[str, np.ndarray] = {
        key: rng.random(11, np.float32) for key in ("x", "y", "z", "rotation", "visibility")
    }
    for key in ("size", "material", "shape", "color"):
        record[key] = rng.integers(0, 9, 11, np.uint8)
    record["pixel_coords"] = rng.random((11, 3), np.float32)
    record["image"] = rng.integers(0, 256, (240, 320, 3), np.uint8)
    record["mask"] = ((labels == np.arange(11)[:, None, None]) * 255).astype(np.uint8)[..., None]
    return record, labels


def test_clevr_is_read_and_cropped(tmp_path: Path) -> None:
    record, labels = clevr_record()
    path = tmp_path / "clevr"
    path.write_bytes(zlib.compress(framed(serialised(record)), 1))
    whole, cropped = open_dataset(path)[0], open_dataset(path, crop="clevr")[0]
    assert (whole["mask"][0].numpy() == labels).all()
    assert (cropped["mask"][0].numpy() == labels[29:221, 64:256]).all()
    assert (cropped["image"].permute(1, 2, 0).numpy() == record["image"][29:221, 64:256]).all()
    for key, values in whole["factors"].items():
        assert values.dtype == torch.float32
        assert (values.numpy() == record[key]).all()


def test_whole_strings_and_integers_are_parsed() -> None:
    payload = example(
        {
            "whole": field(1, field(1, b"abc") + field(1, b"") + field(1, b"de")),
            "packed": field(3, field(1, varint(5) + varint(2**64 - 3))),
            "single": field(3, b"\x08" + varint(300) + b"\x08\x01"),
            "floats": field(2, b"\x0d" + struct.pack("<f", 1.5) + field(1, struct.pack("<f", -2))),
            "nothing": b"",
        }
    )
    features = parse_example(payload)
    assert features["whole"].tobytes() == b"abcde"
    assert features["packed"].tolist() == [5, -3]
    assert features["single"].tolist() == [300, 1]
    assert features["floats"].tolist() == [1.5, -2.0]
    assert features["nothing"].size == 0


def test_one_whole_string_is_read_as_an_image(tmp_path: Path) -> None:
    record = tiny(7)
    features = {key: feature(values) for key, values in record.items()}
    features["image"] = field(1, field(1, record["image"].tobytes()))
    path = tmp_path / "whole"
    path.write_bytes(framed(example(features)))
    assert (open_dataset(path)[0]["image"] == 7).all()


def open_records(path: Path) -> list[bytes]:
    with RecordReader(path) as reader:
        return list(reader)


def outcome(path: Path) -> Any:
    """The images of a file, or its one clear error."""
    message = None
    try:
        dataset = TFRecordDataset(path)
        batch = dataset.__getitems__(range(len(dataset)))
    except ValueError as error:
        message = str(error)
    if message is None:
        return batch
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress], ids=["gzip", "zlib"])
def test_a_compressed_file_cut_anywhere_is_refused(
    compress: Any, plain: Path, tmp_path: Path
) -> None:
    content, path = compress(plain.read_bytes()), tmp_path / "cut"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        error = outcome(path)
        assert isinstance(error, str), length
        assert "record " in error or "empty" in error


def test_a_published_file_cut_short_is_refused(published: Path, tmp_path: Path) -> None:
    content, path = published.read_bytes(), tmp_path / "cut"
    for length in [*range(1, len(content), 23), *range(len(content) - 20, len(content))]:
        path.write_bytes(content[:length])
        assert isinstance(outcome(path), str), length


def test_a_plain_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    payloads, path = [b"", b"one", b"four and more"], tmp_path / "cut"
    content = b"".join(map(framed, payloads))
    ends = [len(framed(b"")), len(framed(b"")) + len(framed(b"one")), len(content)]
    for length in range(1, len(content) + 1):
        path.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        if length in ends:
            assert open_records(path) == payloads[:whole]
        else:
            with pytest.raises(ValueError, match=rf"cut: record {whole}: "):
                open_records(path)


def test_flipped_bytes_of_a_compressed_file_are_found(published: Path, tmp_path: Path) -> None:
    content, path = bytearray(published.read_bytes()), tmp_path / "flipped"
    expected = open_dataset(published).__getitems__(range(10))
    draw = random.Random(0)
    for position in [*range(40), *draw.sample(range(40, len(content)), 160)]:
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        result = outcome(path)
        if not isinstance(result, str):  # the header's time stamp and name, unused last bits
            assert torch.equal(result.image, expected.image)


def test_flipped_bytes_of_a_plain_file_are_found(plain: Path) -> None:
    content = plain.read_bytes()
    draw = random.Random(0)
    for position in [*range(40), *draw.sample(range(40, len(content)), 160)]:
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        plain.write_bytes(changed)
        assert isinstance(outcome(plain), str), position


def test_a_huge_length_is_refused_without_allocating(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    for length in (2**63, 2**28 + 1):
        header = struct.pack("<Q", length)
        path.write_bytes(header + struct.pack("<I", masked_checksum(header)) + b"rest")
        with pytest.raises(ValueError, match=f"record 0: expected at most 268435456 .* {length}"):
            TFRecordDataset(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a TFRecord file, got an empty file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "record 0: neither .* starts with 89 50 4e 47"),
        (b"\x1f\x8b" + bytes(40), "record 0: Error -3 while decompressing"),
        (gzip.compress(b""), "expected a TFRecord file with records, got none"),
        (gzip.compress(b"some text, not records"), "record 0: the checksum of the length is wrong"),
        (gzip.compress(framed(b"")) + b"rest", "record 1: Error -3 while decompressing"),
        (framed(b"\xff\xff"), "record 0: the message ends within a number"),
        (framed(b"\x0b"), "record 0: expected a protocol buffer, got wire type 3"),
        (framed(b"\x0a\x05ab"), "record 0: a field of 5 bytes has only 2 bytes left"),
        (framed(b""), "record 0: expected a record of tetrominoes, .* got no features"),
        (
            framed(example({"a": feature(np.zeros(2, np.float32))})),
            r"record 0: expected a record of tetrominoes, multi-dsprites, clevr, .*, got a\[2\]",
        ),
    ],
    ids=["empty", "PNG", "bad gzip", "no records", "text", "garbage behind", "varint", "wire type",
         "overrun", "no features", "foreign features"],
)  # fmt: skip
def test_foreign_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"foreign: {message}"):
        TFRecordDataset(path) if b"rest" not in content else open_records(path)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("mask", np.zeros(7, np.uint8), "record 1: expected 2 entity masks, got .* mask\\[7\\]"),
        ("mask", np.full(2 * 35 * 35, np.nan, np.float32), "record 1: expected masks of finite"),
        ("image", np.zeros(7, np.uint8), "record 1: expected an image of 35x35, got"),
        ("color", np.zeros(5, np.float32), "record 1: expected color for 2 entities, got 5"),
        ("x", None, "record 1: expected x, got color\\[6\\]"),
    ],
    ids=["mask", "mask of NaN", "image", "colour", "missing"],
)
def test_a_record_unlike_the_first_is_named(
    key: str, values: np.ndarray | None, message: str, tmp_path: Path
) -> None:
    record = tiny(9)
    record.pop(key)
    if values is not None:
        record[key] = values
    path = tmp_path / "mixed"
    path.write_bytes(framed(serialised(tiny(0))) + framed(serialised(record)))
    dataset = TFRecordDataset(path)
    assert (dataset[0]["image"] == 0).all()
    with pytest.raises(ValueError, match=message):
        dataset[1]


def test_images_alone_need_nothing_else(published: Path, tmp_path: Path) -> None:
    """Neither masks nor factors are decoded, nor looked at."""
    large = tmp_path / "clevr"
    large.write_bytes(framed(serialised(clevr_record()[0])) * 2)
    for path, indices in ((published, [3, 0, 9, 3]), (large, [1])):
        dataset = TFRecordDataset(path)
        assert torch.equal(dataset.read_images(indices), dataset.read(indices)[0].image)
    first, other = tiny(0), tiny(9)
    other["mask"], other["color"] = np.zeros(7, np.uint8), np.zeros(5, np.float32)
    path = tmp_path / "mixed"
    path.write_bytes(framed(serialised(first)) + framed(serialised(other)))
    dataset = TFRecordDataset(path)
    assert (dataset.read_images([1]) == 9).all()
    with pytest.raises(ValueError, match="record 1: expected 2 entity masks"):
        dataset.read([1])
    with pytest.raises(IndexError, match=r"index 2 outside of 0\.\.1"):
        dataset.read_images([2])


BRIGHT = np.full((35, 35, 3), 200, np.float32)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"image": np.zeros(7, np.float32)}, r"expected an image of 35x35, got image\[7\]"),
        ({"image": BRIGHT * np.nan}, "expected values from 0 to 255 .*, got NaN"),
        ({}, "expected an image of 35x35, got none"),
    ],
    ids=["size", "nan", "missing"],
)
def test_images_alone_are_checked(
    image: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    record = tiny(0)
    del record["image"]
    path = tmp_path / "mixed"
    both = ({**record, "image": BRIGHT}, {**record, **image})
    path.write_bytes(b"".join(framed(serialised(x)) for x in both))
    dataset = TFRecordDataset(path)
    assert (dataset.read_images([0]) == 200).all()
    with pytest.raises(ValueError, match=f"mixed: record 1: {message}"):
        dataset.read_images([1])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda b: field(1, field(1, b))))
def test_any_payload_parses_or_raises_a_value_error(payload: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_example(payload), dict)


class TestLargeFiles:
    @pytest.fixture
    def large(self, plain: Path, monkeypatch: pytest.MonkeyPatch) -> TFRecordDataset:
        monkeypatch.setattr(tfrecord, "MEMORY_LIMIT", 20_000)
        dataset = TFRecordDataset(plain)
        assert not dataset.in_memory
        return dataset

    def test_are_read_in_order_and_anew(self, large: TFRecordDataset) -> None:
        for _ in range(2):
            assert large.__getitems__([0, 1]).image[:, 0, 0, 0].tolist() == [0, 1]
            assert large.__getitems__([3]).image[0, 0, 0, 0] == 3

    def test_are_read_in_any_order(self, large: TFRecordDataset) -> None:
        for indices in ([2], [1], [3, 1, 1], [0, 3], [2, 0]):
            assert large.__getitems__(indices).image[:, 0, 0, 0].tolist() == indices

    def test_tell_how_to_read_them_faster(self, large: TFRecordDataset) -> None:
        assert large.slow is not None
        assert large.slow.endswith(f"emorl data convert {large.path} --out FILE.h5")

    def test_are_counted_no_further_than_needed(self, large: TFRecordDataset) -> None:
        assert large.count(3) == 3
        assert large.count(9) == 4
        assert len(large) == 4

    def test_end(self, large: TFRecordDataset) -> None:
        with pytest.raises(IndexError, match="index 4 beyond 4 records"):
            large.__getitems__([3, 4])

    def test_can_be_pickled_while_open(self, large: TFRecordDataset) -> None:
        large[1]
        assert (pickle.loads(pickle.dumps(large))[1]["image"] == 1).all()

    def test_damage_is_named_when_reached(self, large: TFRecordDataset) -> None:
        content = bytearray(large.path.read_bytes())
        content[-10] ^= 1
        large.path.write_bytes(content)
        large[2]
        with pytest.raises(ValueError, match="record 3: the checksum of the payload is wrong"):
            large[3]

    def test_damage_in_the_middle_shifts_nothing(self, large: TFRecordDataset) -> None:
        """After a record that cannot be read each other is itself, or an error."""
        content = bytearray(large.path.read_bytes())
        content[3 * len(content) // 4 - 10] ^= 1
        large.path.write_bytes(content)
        for _ in range(2):
            with pytest.raises(ValueError, match="record 2: the checksum of the payload is wrong"):
                large[2]
            assert (large[1]["image"] == 1).all()
            with pytest.raises(ValueError, match="record 2: the checksum of the payload is wrong"):
                large[3]
