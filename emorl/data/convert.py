"""Storing any data set as an HDF5 file in EfficientMORL's layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from emorl.data.base import UNBOUNDED, Batch, ObjectDataset
from emorl.data.open import require_split_name
from emorl.data.values import BYTES
from emorl.paths import local
from emorl.runs.files import replacing

if TYPE_CHECKING:
    import h5py

_BATCH = 64
# EfficientMORL's evaluation takes columns 0 to 7 and the last one of CLEVR's factors.
_ORDER = ("x", "y", "z", "rotation", "size", "material", "shape", "color")
_LAST = ("visibility",)


def convert(
    source: ObjectDataset, path: str | Path, images: int | None = None, *, split: str = "train"
) -> Path:
    """Write the first images of a data set into a new HDF5 file, with a progress bar on terminals.

    The group `split` holds imgs uint8 [N, H, W, 3] with the attribute "value_range", masks uint8 0
    or 255 [N, E, H, W, 1] and factors float32 [N, E, F] with the attribute "columns", one name for
    each column. `HDF5Dataset` gives back exactly what `source` gave. The file gets its name when it
    is complete.

    Args:
        source: what to store.
        path: the new file.
        images: how many images; all by default, which a generator needs a limit for.
        split: name of the group.

    Returns:
        The path.

    Raises:
        ValueError: if the file exists, there are fewer images, or the split is no name.
    """
    path = local(path)
    require_split_name(split)
    if path.exists():
        raise ValueError(f"{path}: already exists")
    if images is None:
        images = len(source)
    if not 1 <= images < UNBOUNDED:
        raise ValueError(f"convert: expected a number of images from 1, got {images}")
    if (available := source.count(images)) < images:
        raise ValueError(f"convert: expected {images} images, got {available} in {source.name}")
    with replacing(path) as unfinished:
        _write(source, unfinished, images, split)
    return path


def _write(source: ObjectDataset, path: Path, images: int, split: str) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        group = file.create_group(split)
        group.attrs["source"] = source.name
        for batch in _batches(source, images):
            for name, rows in _arrays(batch).items():
                _append(group, name, rows)
        group["imgs"].attrs["value_range"] = BYTES
        if "factors" in group:
            group["factors"].attrs["columns"] = _columns(batch.factors)


def _batches(source: ObjectDataset, images: int) -> Iterator[Batch]:
    from tqdm import tqdm

    with tqdm(total=images, unit="image", disable=None) as progress:
        for start in range(0, images, _BATCH):
            indices = range(start, min(start + _BATCH, images))
            yield source.__getitems__(indices).to("cpu")
            progress.update(len(indices))


def _arrays(batch: Batch) -> dict[str, np.ndarray]:
    """The rows of a batch as they are stored."""
    arrays = {"imgs": batch.image.permute(0, 2, 3, 1).numpy()}
    if batch.factors:
        parts = [batch.factors[name] for name in _ordered(batch.factors)]
        columns = [part if part.dim() == 3 else part[..., None] for part in parts]
        arrays["factors"] = torch.cat(columns, dim=-1).float().numpy()
    if batch.mask is not None:
        entities = int(batch.mask.max()) + 1
        if batch.factors:
            entities = max(entities, arrays["factors"].shape[1])
        masks = batch.mask == torch.arange(entities).view(1, -1, 1, 1)
        arrays["masks"] = (masks.byte() * 255)[..., None].numpy()
    return arrays


def _append(group: h5py.Group, name: str, rows: np.ndarray) -> None:
    """Add rows to a data set, which is made on the first call and widened as entities need it."""
    if name not in group:
        together = 1 if rows.ndim > 3 else 256  # images are read one by one, in random order
        group.create_dataset(
            name,
            shape=(0, *rows.shape[1:]),
            maxshape=(None, None, *rows.shape[2:]),
            dtype=rows.dtype,
            chunks=(together, *rows.shape[1:]),
            compression="gzip",
            compression_opts=1,
        )
    stored = group[name]
    start = len(stored)
    stored.resize((start + len(rows), max(stored.shape[1], rows.shape[1]), *rows.shape[2:]))
    stored[start:, : rows.shape[1]] = rows


def _ordered(factors: Mapping[str, Tensor]) -> list[str]:
    """Names in the order of their columns: EfficientMORL's first, visibility last."""
    first = [name for name in _ORDER if name in factors]
    last = [name for name in _LAST if name in factors]
    return first + sorted(factors.keys() - {*first, *last}) + last


def _columns(factors: Mapping[str, Tensor]) -> list[str]:
    widths = {name: value.shape[2] if value.dim() == 3 else 1 for name, value in factors.items()}
    return [name for name in _ordered(factors) for _ in range(widths[name])]
