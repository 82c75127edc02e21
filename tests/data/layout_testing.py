"""Files in each published layout, written with h5py and numpy, and what must be read of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

COUNT, OBJECTS = 6, 2


@dataclass
class Scenes:
    """What is stored: images [N, H, W, C], labels [N, H, W] and factors [N, E] or [N, E, n]."""

    images: np.ndarray
    labels: np.ndarray | None
    factors: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def entity_masks(self) -> np.ndarray:
        """Masks 0 or 255, [N, E, H, W]."""
        assert self.labels is not None
        entities = np.arange(self.entities)[:, None, None]
        return ((self.labels[:, None] == entities) * 255).astype(np.uint8)

    @property
    def entities(self) -> int:
        return next(iter(self.factors.values())).shape[1] if self.factors else OBJECTS + 1


def scenes(
    height: int = 9,
    width: int = 8,
    *,
    channels: int = 3,
    entities: int = OBJECTS + 1,
    factors: tuple[str, ...] = ("x", "y", "shape", "color", "visibility"),
    count: int = COUNT,
) -> Scenes:
    """Random images with every entity in every image."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, entities, (count, height, width)).astype(np.uint8)
    labels[:, 0, :entities] = np.arange(entities)[:width]
    values = {name: rng.random((count, entities), np.float32) for name in factors}
    if "color" in values and channels > 1:
        values["color"] = rng.random((count, entities, channels), np.float32)
    if "visibility" in values:
        values["visibility"][:] = 1
    images = rng.integers(2, 256, (count, height, width, channels), np.uint8)
    return Scenes(images, labels, values)


def efficient_morl(path: Path, split: str = "train") -> Scenes:
    """A group per split; the factors in columns named by bytes."""
    made = scenes()
    columns = [
        (name, values.reshape(*values.shape[:2], -1)) for name, values in made.factors.items()
    ]
    with h5py.File(path, "w") as file:
        group = file.create_group(split)
        group["imgs"] = made.images
        group["masks"] = made.entity_masks[..., None]
        group["factors"] = np.concatenate([values for _, values in columns], axis=2)
        names = [name for name, values in columns for _ in range(values.shape[2])]
        group["factors"].attrs["columns"] = np.array(names, "S")
    return made


def object_centric_library(path: Path) -> Scenes:
    """A label map, and features [N, E, n] with a last axis of 1 where they are numbers."""
    made = scenes()
    assert made.labels is not None
    with h5py.File(path, "w") as file:
        file["image"] = made.images
        file["mask"] = made.labels[..., None]
        file["num_actual_objects"] = np.full((COUNT, 1), OBJECTS)
        for name, values in made.factors.items():
            file[name] = values if values.ndim == 3 else values[..., None]
    return made


def torch_datasets(path: Path) -> Scenes:
    """The TFRecords' features, channels first, one row a chunk."""
    made = scenes()
    with h5py.File(path, "w") as file:
        rows = {
            "image": made.images.transpose(0, 3, 1, 2),
            "mask": made.entity_masks[:, :, None],
            **made.factors,
        }
        for name, values in rows.items():
            chunk = (1, *values.shape[1:])
            file.create_dataset(name, data=values, chunks=chunk, compression="gzip")
    return made


def root_arrays(path: Path) -> Scenes:
    """EfficientMORL's names without groups."""
    made = scenes(factors=())
    with h5py.File(path, "w") as file:
        file["imgs"], file["masks"] = made.images, made.entity_masks[..., None]
    return made


def dsprites(path: Path) -> Scenes:
    """Images of 0 and 1, and the factors of the one object."""
    names = ("color", "shape", "scale", "orientation", "x", "y")
    made = scenes(channels=1, entities=2, factors=names)
    assert made.labels is not None
    values = np.stack([values[:, 1] for values in made.factors.values()], axis=1)
    with h5py.File(path, "w") as file:
        file["imgs"] = made.labels
        file["latents/values"] = values
        file["latents/classes"] = np.zeros(values.shape, np.int64)
    for factor in made.factors.values():
        factor[:, 0] = 0
    made.images = 255 * made.labels[..., None]
    return made


HDF5: dict[str, Callable[[Path], Scenes]] = {
    "EfficientMORL": efficient_morl,
    "object-centric-library": object_centric_library,
    "multi_object_datasets_torch": torch_datasets,
    "arrays at the root": root_arrays,
    "dSprites": dsprites,
}
