"""Parts of an HDF5 file in EfficientMORL's layout: written, joined, and compared by checksums."""

from __future__ import annotations

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

BATCH = 64
"""Images that are written, and compared, together."""
# EfficientMORL's evaluation takes columns 0 to 7 and the last one of CLEVR's factors.
_ORDER = ("x", "y", "z", "rotation", "size", "material", "shape", "color")
_LAST = ("visibility",)
_CHECKSUMS = "checksums"
_MOST_LABELS = 2**31


def write_part(source: ObjectDataset, images: range, path: Path) -> None:
    """Write images into a file of their own, with a checksum for each `BATCH` of them."""
    import h5py

    sums = []
    with h5py.File(path, "w") as file:
        for rows in _batches(images):
            batch = source.__getitems__(rows).to("cpu")
            sums.append(checksum(batch))
            for name, values in _arrays(batch).items():
                _append(file, name, values)
        file["imgs"].attrs["value_range"] = BYTES
        if batch.mask is not None and batch.mask.dtype != torch.uint8:
            file["masks"].attrs["labels"] = _MOST_LABELS
        if "factors" in file:
            file["factors"].attrs["columns"] = _columns(batch.factors)
        file.attrs[_CHECKSUMS] = np.array(sums, np.uint32)


def checksums_of(path: Path, images: range) -> Iterator[tuple[range, int]]:
    """Batches of a part's images, with their checksums."""
    import h5py

    with h5py.File(path) as file:
        sums = file.attrs[_CHECKSUMS].tolist()
    return zip(_batches(images), sums, strict=True)


def checksum(batch: Batch) -> int:
    """CRC-32 of images, masks and factors; not of their places in the data set."""
    value = 0
    mask = {} if batch.mask is None else {"mask": batch.mask}
    factors = {name: values.float() for name, values in sorted(batch.factors.items())}
    tensors = {"image": batch.image, **mask, **factors}
    for name, tensor in tensors.items():
        head = f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
        value = zlib.crc32(tensor.cpu().contiguous().numpy().tobytes(), zlib.crc32(head, value))
    return value


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


def _batches(images: range) -> Iterator[range]:
    for start in range(images.start, images.stop, BATCH):
        yield range(start, min(start + BATCH, images.stop))


def _arrays(batch: Batch) -> dict[str, np.ndarray]:
    """The rows of a batch as they are stored."""
    arrays = {"imgs": batch.image.permute(0, 2, 3, 1).numpy()}
    if batch.factors:
        parts = [batch.factors[name] for name in _ordered(batch.factors)]
        _require_same_entities(batch.factors)
        columns = [part if part.dim() == 3 else part[..., None] for part in parts]
        arrays["factors"] = torch.cat(columns, dim=-1).float().numpy()
    if batch.mask is not None and batch.mask.dtype != torch.uint8:
        arrays["masks"] = batch.mask[..., None].numpy()
    elif batch.mask is not None:
        entities = int(batch.mask.max()) + 1
        if batch.factors:
            entities = max(entities, arrays["factors"].shape[1])
        masks = batch.mask == torch.arange(entities).view(1, -1, 1, 1)
        arrays["masks"] = (masks.byte() * 255)[..., None].numpy()
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
