"""Files like the published ones, to be read: TFRecords in DeepMind's layouts, HDF5."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emorl.data import Batch, ObjectDataset
from emorl.data.readers.tfrecord_container import masked_checksum
from emorl.data.readers.tfrecord_layouts import LAYOUTS

_BYTES_LIST, _FLOAT_LIST = 1, 2  # fields of tf.train.Feature
_TOGETHER = 16  # images


def write_tfrecord(images: ObjectDataset, path: Path, repeats: int = 1) -> None:
    """Write a data set as DeepMind stores the one of its name: gzip, one string for each byte.

    Args:
        images: with masks and the factors of its layout.
        path: of the file.
        repeats: how many times the records come, which makes a long file in a short time.
    """
    layout = {layout.name: layout for layout in LAYOUTS}[images.name]
    records = [_framed(_example(features)) for features in _records(images, layout.entities_first)]
    path.write_bytes(gzip.compress(b"".join(records), compresslevel=1) * repeats)


def write_contiguous_hdf5(images: ObjectDataset, path: Path) -> None:
    """Write a data set as h5py stores arrays unless told otherwise: no chunks, no compression."""
    import h5py

    batch = images.__getitems__(range(len(images)))
    assert batch.mask is not None
    with h5py.File(path, "w") as file:
        group = file.create_group("train")
        group["imgs"] = batch.image.permute(0, 2, 3, 1).numpy()
        group["masks"] = _entity_masks(batch)[..., None]


def write_picture_folder(images: ObjectDataset, path: Path) -> None:
    """Write a data set as a folder of JPEG files, all for training, with label maps beside."""
    from PIL import Image

    folder = path / "train"
    folder.mkdir(parents=True)
    batch = images.__getitems__(range(len(images)))
    assert batch.mask is not None
    pairs = zip(batch.image.permute(0, 2, 3, 1).numpy(), batch.mask[:, 0].numpy(), strict=True)
    for number, (image, labels) in enumerate(pairs):
        Image.fromarray(image).save(folder / f"{number:05}.jpg", quality=90)
        Image.fromarray(labels).save(folder / f"{number:05}_mask.png")


def write_clevrtex(images: ObjectDataset, path: Path) -> None:
    """Write a data set as ClevrTex's outd, which is one split, is stored."""
    from PIL import Image

    path.mkdir(parents=True)
    batch = images.__getitems__(range(len(images)))
    assert batch.mask is not None
    pairs = zip(batch.image.permute(0, 2, 3, 1).numpy(), batch.mask[:, 0].numpy(), strict=True)
    for number, (image, labels) in enumerate(pairs):
        stem = path / f"CLEVRTEX_outd_{number:06}"
        Image.fromarray(image).save(f"{stem}.png")
        Image.fromarray(labels).save(f"{stem}_flat.png")
        Path(f"{stem}.json").write_text('{"objects": []}')


def write_npz(images: ObjectDataset, path: Path) -> None:
    """Write a data set as a compressed archive of NumPy's."""
    batch = images.__getitems__(range(len(images)))
    assert batch.mask is not None
    with path.open("wb") as file:
        np.savez_compressed(
            file, image=batch.image.permute(0, 2, 3, 1).numpy(), mask=batch.mask[:, 0].numpy()
        )


def _entity_masks(batch: Batch) -> NDArray[np.uint8]:
    """A mask for each entity, 0 or 255 [B, E, H, W]."""
    assert batch.mask is not None
    entities = batch.factors["visibility"].shape[1]
    masks = batch.mask == torch.arange(entities).view(1, -1, 1, 1)
    stored: NDArray[np.uint8] = (masks.byte() * 255).numpy()
    return stored


def _records(images: ObjectDataset, entities_first: bool) -> Iterator[dict[str, NDArray[Any]]]:
    """The features of every record, uint8 or float32."""
    for start in range(0, len(images), _TOGETHER):
        batch = images.__getitems__(range(start, min(start + _TOGETHER, len(images))))
        masks = _entity_masks(batch)
        masks = masks if entities_first else masks.transpose(0, 2, 3, 1)
        pictures = batch.image.permute(0, 2, 3, 1).numpy()
        for row, picture in enumerate(pictures):
            factors = {name: values[row].numpy() for name, values in batch.factors.items()}
            yield {"image": picture, "mask": masks[row], **factors}


def _example(features: dict[str, NDArray[Any]]) -> bytes:
    """A serialised `tf.train.Example`."""
    entries = [
        _field(1, name.encode()) + _field(2, _feature(values)) for name, values in features.items()
    ]
    return _field(1, b"".join(_field(1, entry) for entry in entries))


def _feature(values: NDArray[Any]) -> bytes:
    if values.dtype != np.uint8:
        return _field(_FLOAT_LIST, _field(1, values.astype("<f4").tobytes()))
    strings = np.empty((values.size, 3), np.uint8)
    strings[:] = 1 << 3 | 2, 1, 0  # field 1, a string of 1 byte
    strings[:, 2] = values.ravel()
    return _field(_BYTES_LIST, strings.tobytes())


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that has a length."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def _framed(payload: bytes) -> bytes:
    """A record of a TFRecord file."""
    length = struct.pack("<Q", len(payload))
    sums = [struct.pack("<I", masked_checksum(part)) for part in (length, payload)]
    return length + sums[0] + payload + sums[1]
