"""Parts of an HDF5 file in EfficientMORL's layout: written, joined, and compared by checksums."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from emorl.data.base import Batch, ObjectDataset
from emorl.data.values import BYTES

if TYPE_CHECKING:
    import h5py

    from emorl.data.readers.hdf5 import HDF5Dataset

_BATCH = 64  # images that are read together, and written and compared, if they are small
_TOGETHER = 64 << 20  # bytes of images and masks that are written, and compared, together
# EfficientMORL's evaluation takes columns 0 to 7 and the last one of CLEVR's factors.
_ORDER = ("x", "y", "z", "rotation", "size", "material", "shape", "color")
_LAST = ("visibility",)
_CHECKSUMS = "checksums"
_MOST_LABELS = 2**31


def write_part(source: ObjectDataset, images: range, path: Path) -> None:
    """Write images into a file of their own, with a checksum for each."""
    import h5py

    sums = []
    with h5py.File(path, "w") as file:
        for rows in _batches(images, _BATCH):
            batch = source.__getitems__(rows).to("cpu")
            sums += checksums(batch)
            entities = _entities(batch)
            image = batch.image[0].nbytes
            if batch.mask is not None:
                image += entities * batch.mask[0].nbytes
            for few in _batches(range(len(batch)), _together(image)):
                for name, values in _arrays(_rows(batch, few), entities).items():
                    _append(file, name, values)
        file["imgs"].attrs["value_range"] = BYTES
        if batch.mask is not None and batch.mask.dtype != torch.uint8:
            file["masks"].attrs["labels"] = _MOST_LABELS
        if "factors" in file:
            file["factors"].attrs["columns"] = _columns(batch.factors)
        file.attrs[_CHECKSUMS] = np.array(sums, np.uint32)


def differing(stored: HDF5Dataset, part: Path, images: range) -> Iterator[tuple[range, list[int]]]:
    """A part's images as they are stored, a few at a time, and those of them that differ."""
    import h5py

    with h5py.File(part) as file, h5py.File(stored.path) as whole:
        sums = file.attrs[_CHECKSUMS].tolist()
        rows_of_all = whole[stored.split].values()
        image = sum(math.prod(rows.shape[1:]) * rows.dtype.itemsize for rows in rows_of_all)
    for rows in _batches(images, _together(image)):
        found = zip(rows, checksums(stored.__getitems__(rows)), strict=True)
        yield rows, [index for index, value in found if value != sums[index - images.start]]


def checksums(batch: Batch) -> list[int]:
    """CRC-32 of each image, its mask and factors; not of its place in the data set."""
    mask = {} if batch.mask is None else {"mask": batch.mask}
    factors = {name: values.float() for name, values in sorted(batch.factors.items())}
    tensors = {"image": batch.image, **mask, **factors}
    arrays = {name: tensor.cpu().contiguous().numpy() for name, tensor in tensors.items()}
    heads = [f"{name} {x.dtype} {x.shape[1:]}".encode() for name, x in arrays.items()]
    values = [0] * len(batch)
    for head, array in zip(heads, arrays.values(), strict=True):
        for row, content in enumerate(array):
            values[row] = zlib.crc32(content, zlib.crc32(head, values[row]))
    return values


def join(parts: Sequence[Path], path: Path, split: str, source: str) -> None:
    """Write the images of all parts into the group `split` of one file."""
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group(split)
        group.attrs["source"] = source
        for place in parts:
            with h5py.File(place) as part:
                for name, stored in part.items():
                    _extend(group, name, stored)


def _batches(images: range, together: int) -> Iterator[range]:
    for start in range(images.start, images.stop, together):
        yield range(start, min(start + together, images.stop))


def _together(image: int) -> int:
    """How many images of so many bytes are written, or compared, together."""
    return max(1, min(_BATCH, _TOGETHER // image))


def _rows(batch: Batch, rows: range) -> Batch:
    return batch.apply(lambda tensor: tensor[rows.start : rows.stop])


def _entities(batch: Batch) -> int:
    """How many masks an image has: as many as entities, or the largest label needs."""
    if batch.mask is None or batch.mask.dtype != torch.uint8:
        return 1
    return max(int(batch.mask.max()) + 1, *(x.shape[1] for x in batch.factors.values()), 1)


def _arrays(batch: Batch, entities: int) -> dict[str, np.ndarray]:
    """The rows of a batch as they are stored, with masks of so many entities."""
    arrays = {"imgs": batch.image.permute(0, 2, 3, 1).numpy()}
    if batch.factors:
        parts = [batch.factors[name] for name in _ordered(batch.factors)]
        _require_same_entities(batch.factors)
        columns = [part if part.dim() == 3 else part[..., None] for part in parts]
        arrays["factors"] = torch.cat(columns, dim=-1).float().numpy()
    if batch.mask is not None and batch.mask.dtype != torch.uint8:
        arrays["masks"] = batch.mask[..., None].numpy()
    elif batch.mask is not None:
        masks = batch.mask == torch.arange(entities).view(1, -1, 1, 1)
        arrays["masks"] = masks.view(torch.uint8).mul_(255)[..., None].numpy()
    return arrays


def _require_same_entities(factors: Mapping[str, Tensor]) -> None:
    """Refuse factors that cannot be columns of one table, [N, E, F]."""
    if len({values.shape[1] for values in factors.values()}) > 1:
        found = ", ".join(f"{name} {values.shape[1]}" for name, values in factors.items())
        raise ValueError(f"expected factors of the same number of entities, got {found}")


def _append(group: h5py.Group, name: str, rows: np.ndarray) -> None:
    """Add rows to a data set, which is made on the first call and widened as entities need it."""
    if name not in group:
        together = 1 if rows.ndim > 3 else 256  # images are read one by one, in random order
        _create(group, name, (0, *rows.shape[1:]), (together, *rows.shape[1:]), rows.dtype)
    stored = group[name]
    start = len(stored)
    stored.resize((start + len(rows), max(stored.shape[1], rows.shape[1]), *rows.shape[2:]))
    stored[start:, : rows.shape[1]] = rows


def _create(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
) -> h5py.Dataset:
    return group.create_dataset(
        name,
        shape=shape,
        maxshape=(None, None, *shape[2:]),
        dtype=dtype,
        chunks=chunks,
        compression="gzip",
        compression_opts=1,
    )


def _extend(group: h5py.Group, name: str, part: h5py.Dataset) -> None:
    """Add the rows of a part; whole chunks are copied as they are."""
    if name not in group:
        stored = _create(group, name, (0, *part.shape[1:]), part.chunks, part.dtype)
        stored.attrs.update(part.attrs)
    stored = group[name]
    start = len(stored)
    stored.resize((start + len(part), max(stored.shape[1], part.shape[1]), *part.shape[2:]))
    if part.chunks != stored.chunks or part.chunks[0] > 1:
        stored[start:, : part.shape[1]] = part[:]
        return
    for index in range(part.id.get_num_chunks()):
        chunk = part.id.get_chunk_info(index)
        filters, content = part.id.read_direct_chunk(chunk.chunk_offset)
        first, *others = chunk.chunk_offset
        stored.id.write_direct_chunk((start + first, *others), content, filters)


def _ordered(factors: Mapping[str, Tensor]) -> list[str]:
    """Names in the order of their columns: EfficientMORL's first, visibility last."""
    first = [name for name in _ORDER if name in factors]
    last = [name for name in _LAST if name in factors]
    return first + sorted(factors.keys() - {*first, *last}) + last


def _columns(factors: Mapping[str, Tensor]) -> list[str]:
    widths = {name: value.shape[2] if value.dim() == 3 else 1 for name, value in factors.items()}
    return [name for name in _ordered(factors) for _ in range(widths[name])]
