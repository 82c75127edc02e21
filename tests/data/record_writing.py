"""TFRecord files written by hand, by the specifications alone: nothing of emorl is used.

Record format and mask of the checksum: tensorflow/core/lib/io/record_writer.h; messages:
tensorflow/core/example/example.proto.
"""

from __future__ import annotations

import functools
import gzip
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from layout_testing import Scenes, scenes

FACTORS = ("x", "y", "shape", "color", "visibility")
CATER_FRAMES, CATER_ENTITIES = 33, 11
GZIP = functools.partial(gzip.compress, compresslevel=1)
ZLIB = functools.partial(zlib.compress, level=1)


def masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def tagged(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values: np.ndarray, whole: bool) -> bytes:
    """A FloatList, or a BytesList of one-byte strings; of one `whole` string in CATER's files."""
    if values.dtype == np.float32:
        return tagged(2, tagged(1, values.astype("<f4").tobytes()))
    if whole:
        return tagged(1, tagged(1, values.tobytes()))
    triples = np.full((values.size, 3), (10, 1, 0), np.uint8)
    triples[:, 2] = values.ravel()
    return tagged(1, triples.tobytes())


def record(features: Mapping[str, np.ndarray], whole: bool = False) -> bytes:
    entries = [
        tagged(1, tagged(1, name.encode()) + tagged(2, feature(values, whole)))
        for name, values in features.items()
    ]
    payload = tagged(1, b"".join(entries))
    length = struct.pack("<Q", len(payload))
    return length + masked_crc(length) + payload + masked_crc(payload)


def written(
    path: Path,
    made: Scenes,
    masks: np.ndarray,
    compress: Callable[[bytes], bytes] = GZIP,
    **others: np.ndarray,
) -> Scenes:
    """Write a record per image, with features beside the known ones."""
    rows = [
        {"image": image, "mask": mask, **{k: v[row] for k, v in {**made.factors, **others}.items()}}
        for row, (image, mask) in enumerate(zip(made.images, masks, strict=True))
    ]
    path.write_bytes(compress(b"".join(map(record, rows))))
    return made


def tetrominoes(path: Path) -> Scenes:
    """With a feature that the published file does not have, and zeros behind the data."""
    made = scenes(35, 35, entities=4, factors=FACTORS, count=3)
    written(path, made, made.entity_masks[..., None], other=np.zeros((3, 2), np.float32))
    path.write_bytes(path.read_bytes() + bytes(512))
    return made


def multi_dsprites(entities: int, channels: int, path: Path) -> Scenes:
    """Masks [H, W, E, 1]."""
    names = (*FACTORS, "orientation", "scale")
    made = scenes(64, 64, channels=channels, entities=entities, factors=names, count=2)
    return written(path, made, made.entity_masks.transpose(0, 2, 3, 1)[..., None])


def clevr(path: Path) -> Scenes:
    """Codes are bytes."""
    codes = ("size", "material", "shape", "color")
    made = scenes(
        240,
        320,
        entities=11,
        factors=("x", "y", "z", "rotation", "visibility", "pixel_coords", *codes),
        count=1,
    )
    made.factors["pixel_coords"] = np.random.default_rng(1).random((1, 11, 3), np.float32)
    for code in codes:
        made.factors[code] = np.arange(11, dtype=np.uint8)[None] % 9
    written(path, made, made.entity_masks[..., None], ZLIB)
    return made


def objects_room(path: Path) -> Scenes:
    """Four entities are background."""
    made = scenes(64, 64, entities=7, factors=(), count=2)
    assert made.labels is not None
    masks = (made.labels[:, None] == np.arange(7)[:, None, None])[..., None] * np.uint8(255)
    written(path, made, masks)
    made.labels = made.labels - made.labels.clip(max=3)
    return made


def cater(path: Path) -> Scenes:
    """One video in a ZLIB file, positions by entity, then frame."""
    made = scenes(64, 64, entities=CATER_ENTITIES, factors=(), count=CATER_FRAMES)
    assert made.labels is not None
    entities = np.arange(CATER_ENTITIES)[:, None, None]
    rng = np.random.default_rng(1)
    positions = rng.random((CATER_ENTITIES, CATER_FRAMES, 3), np.float32)
    video = {
        "image": made.images,
        "mask": ((made.labels[:, None] == entities) * 255).astype(np.uint8)[..., None],
        "object_positions": positions,
        "camera_matrix": np.zeros((CATER_FRAMES, 4, 4), np.float32),
    }
    path.write_bytes(ZLIB(record(video, whole=True)))
    made.factors["object_positions"] = positions.transpose(1, 0, 2)
    return made


TFRECORDS: dict[str, Callable[[Path], Scenes]] = {
    "Tetrominoes": tetrominoes,
    "Multi-dSprites, colored on grayscale": functools.partial(multi_dsprites, 6, 3),
    "Multi-dSprites, binarized": functools.partial(multi_dsprites, 4, 1),
    "Multi-dSprites, colored on colored": functools.partial(multi_dsprites, 5, 3),
    "CLEVR with masks": clevr,
    "Objects Room": objects_room,
    "CATER": cater,
}


def shards(folder: Path, contents: Sequence[bytes]) -> str:
    """Files as the published ones are called; the pattern that matches them."""
    for number, content in enumerate(contents):
        name = f"cater_with_masks_train.tfrecords-{number:05}-of-{len(contents):05}"
        (folder / name).write_bytes(content)
    return str(folder / "cater_with_masks_train.tfrecords-*")
