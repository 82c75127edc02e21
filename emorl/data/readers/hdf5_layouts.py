"""Where HDF5 files keep images, masks and factors; told by names and shapes, masks by content.

* EfficientMORL's: a group per split with imgs [N, H, W, C], masks [N, E, H, W, 1] and factors
  [N, E, F], whose columns the attribute "columns" names (a name comes once for each of its
  components, side by side), or which are the nine of its CLEVR files.
* object-centric-library's: image, a label map mask [N, H, W, 1] and a data set for each factor,
  [N, E] or [N, E, n], at the root.
* multi_object_datasets_torch's: image and mask, channels first or last, and the factors likewise.
* dSprites' own: imgs [N, H, W] of 0 and 1, and a row of latents/values for the one object.
* Others with arrays of these names, in a group per split or at the root.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import h5py
import numpy as np

from emorl.data.readers.axes import image_axes, is_label_map, mask_axes
from emorl.data.readers.base import MOST_ENTITIES, only_one
from emorl.data.readers.hdf5_members import contents, data_set, kind, member, text_of
from emorl.data.readers.hdf5_storage import require_stored, require_written
from emorl.data.values import LOOKED_AT
from emorl.fields import shown

CLEVR_COLUMNS = (
    "x",
    "y",
    "z",
    "rotation",
    "size",
    "material",
    "shape",
    "color",
    "visibility",
)
EFFICIENT_MORL, DSPRITES = "EfficientMORL's files", "dSprites' file"
_LIBRARY, _TORCH = "object-centric-library's files", "multi_object_datasets_torch's files"
_IMAGES, _MASKS = ("imgs", "image", "images"), ("masks", "mask")
_LATENTS = ("color", "shape", "scale", "orientation", "x", "y")
_LABELS = "labels"
"""Attribute of a label map: how many labels there may be, 0 among them."""
_MOST_LABELS = 2**31
_BYTE = 255
_PROBED_BYTES = 64 << 20


@dataclass(frozen=True)
class Table:
    """Factors in one data set.

    Attributes:
        name: of the data set.
        columns: a name for each number of an entity.
        of_one_object: rows [N, F] of the only object, rather than [N, E] or [N, E, F].
    """

    name: str
    columns: tuple[str, ...]
    of_one_object: bool = False


@dataclass(frozen=True)
class Layout:
    """Where a file keeps a split.

    Attributes:
        name: of the layout, or "arrays" with the name of the images.
        group: path of what holds all of it; names may be links to elsewhere.
        images: name in that group.
        image_axes: as `emorl.data.readers.axes` writes them.
        length: number of images.
        image_size: height and width in pixels.
        masks: name in the group; None if there are none.
        mask_axes: likewise.
        most_label: the largest label that a label map may have; None for a mask per entity.
        tables: the factors.
    """

    name: str
    group: str
    images: str
    image_axes: str
    length: int
    image_size: tuple[int, int]
    masks: str | None = None
    mask_axes: str = ""
    most_label: int | None = None
    tables: tuple[Table, ...] = ()

    @property
    def names(self) -> list[str]:
        """All data sets that are read, each once."""
        found = [self.images, self.masks, *(table.name for table in self.tables)]
        return [*dict.fromkeys(name for name in found if name is not None)]


def splits(file: h5py.File) -> list[str]:
    """Names of the groups that hold images, of all if none does; none if the root has images."""
    if _first(file, _IMAGES) is not None:
        return []
    groups = [name for name in file if isinstance(member(file, name), h5py.Group)]
    with_images = [name for name in groups if _first(file[name], _IMAGES) is not None]
    return [text_of(name) for name in with_images or groups]


def find_layout(file: h5py.File, split: str) -> Layout:
    """The layout of a split, which is a group, or all of a file that has its arrays at the root.

    Raises:
        ValueError: if it is none of the layouts above, or declares more than is stored.
    """
    path, group = f"/{split}", member(file, split)
    if not isinstance(group, h5py.Group) and _first(file, _IMAGES) is not None:
        path, group = "/", file
    if group is None and split not in file:
        raise ValueError(
            f"expected a group {split!r}, got {contents(file)}; --split or data.split "
            "chooses another"
        )
    if not isinstance(group, h5py.Group):
        raise ValueError(f"expected {split}/imgs, got {kind(group)}")
    name = _first(group, _IMAGES)
    if name is None:
        raise ValueError(f"expected {split}/imgs, got {contents(group)}")
    return _layout(path, group, name)


def _layout(path: str, group: h5py.Group, name: str) -> Layout:
    only_one(_data_sets(group, _IMAGES), "images")
    only_one(_data_sets(group, _MASKS), "masks")
    images = data_set(group, name)
    assert images is not None
    axes = image_axes(images.shape, name)
    require_stored(images)
    require_written(images)
    sizes = dict(zip(axes, images.shape, strict=True))
    common = (path, name, axes, sizes["N"], (sizes["H"], sizes["W"]))
    latents = member(group, "latents")
    if axes == "NHW" and isinstance(latents, h5py.Group):
        values = data_set(latents, "values")
        if values is not None and values.shape == (sizes["N"], len(_LATENTS)):
            require_stored(values)
            require_written(values)
            table = Table("latents/values", _LATENTS, of_one_object=True)
            return Layout(DSPRITES, *common, name, axes, 1, (table,))
    found = _first(group, _MASKS)
    masks = None if found is None else data_set(group, found)
    read_as, most = "", None
    if masks is not None:
        read_as, most = _mask_axes(masks, sizes)
    entities = masks.shape[read_as.index("E")] if masks is not None and most is None else None
    tables = (*_tables(group, sizes["N"], entities, (name, *_MASKS)),)
    layout = _name(name, masks is not None, most is not None)
    return Layout(layout, *common, found, read_as, most, tables)


def _name(images: str, has_masks: bool, has_labels: bool) -> str:
    if images == "imgs" and has_masks and not has_labels:
        return EFFICIENT_MORL
    if images == "image" and has_masks:
        return _LIBRARY if has_labels else _TORCH
    return f"arrays with {images}"


def _first(group: h5py.Group, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in group), None)


def _data_sets(group: h5py.Group, names: Sequence[str]) -> list[str]:
    return [name for name in names if isinstance(member(group, name), h5py.Dataset)]


def _mask_axes(masks: h5py.Dataset, sizes: dict[str, int]) -> tuple[str, int | None]:
    """Axes of the masks, and the largest label of a label map."""
    shape = masks.shape
    entities, labels = mask_axes(shape, {axis: sizes[axis] for axis in "NHW"})
    if entities is None and labels is None:
        size = f"{sizes['H']}, {sizes['W']}"
        raise ValueError(
            f"expected masks [{sizes['N']}, E, {size}, 1], got {list(shape)}; a label map would "
            f"be [{sizes['N']}, {size}, 1]"
        )
    if entities is not None and not 1 <= (count := shape[entities.index("E")]) <= MOST_ENTITIES:
        raise ValueError(f"expected masks of 1 to {MOST_ENTITIES} entities, got {count}")
    require_stored(masks, partly=entities is not None)
    require_written(masks, partly=entities is not None)
    if labels is None:
        assert entities is not None
        return entities, None
    if _LABELS in masks.attrs:
        return labels, _most_label(masks)
    probed = list(_probed(masks))
    if entities is not None and not any(is_label_map(rows) for rows in probed):
        return entities, None
    large = masks.dtype.itemsize > 1 and any((rows > _BYTE).any() for rows in probed)
    return labels, np.iinfo(np.int32).max if large else _BYTE


def _most_label(masks: h5py.Dataset) -> int:
    """The largest label that a label map's attribute allows."""
    given = np.ravel(masks.attrs[_LABELS])
    is_whole = given.size == 1 and given.dtype.kind in "iuf" and given[0] % 1 == 0
    if not is_whole or not 1 <= given[0] <= _MOST_LABELS:
        raise ValueError(
            f"expected the attribute {_LABELS} of {masks.name}, the number of labels, to be from 1 "
            f"to {_MOST_LABELS}, got {shown(masks.attrs[_LABELS])}"
        )
    return int(given[0]) - 1


def _probed(masks: h5py.Dataset) -> Iterator[np.ndarray]:
    """The first masks, a few at a time: up to `LOOKED_AT` images or `_PROBED_BYTES`."""
    row = math.prod(masks.shape[1:]) * masks.dtype.itemsize
    images = min(len(masks), LOOKED_AT, max(1, _PROBED_BYTES // row))
    for start in range(0, images, 100):
        yield masks[start : min(start + 100, images)]


def _tables(
    group: h5py.Group, length: int, entities: int | None, others: Sequence[str]
) -> Iterator[Table]:
    """The factors of a group: "factors", else every data set with a row for each entity.

    How many entities there are is told by the masks, or by the visibility.
    """
    factors = data_set(group, "factors")
    if factors is not None:
        require_stored(factors, partly=True)
        require_written(factors, partly=True)
        yield Table("factors", _column_names(factors, length))
        return
    visibility = data_set(group, "visibility")
    if entities is None and visibility is not None and len(visibility.shape) > 1:
        entities = visibility.shape[1]
    for name in group:
        found = member(group, name)
        if name in others or not isinstance(found, h5py.Dataset) or found.shape is None:
            continue
        if found.shape[:2] != (length, entities) or len(found.shape) > 3 or 0 in found.shape:
            continue
        if found.dtype.kind in "buif":
            require_stored(found, partly=True)
            require_written(found, partly=True)
            yield Table(name, (name,) * math.prod(found.shape[2:]))


def _column_names(factors: h5py.Dataset, length: int) -> tuple[str, ...]:
    """One name for each column of the factors."""
    shape = factors.shape
    if len(shape) != 3 or shape[0] != length or 0 in shape:
        raise ValueError(f"expected factors [{length}, E, F], got {list(shape)}")
    given = np.ravel(factors.attrs.get("columns", ()))
    columns = [text_of(name if isinstance(name, bytes) else str(name)) for name in given]
    if not columns:
        return CLEVR_COLUMNS if shape[2] == len(CLEVR_COLUMNS) else ("factors",) * shape[2]
    if len(columns) != shape[2]:
        raise ValueError(f"expected {shape[2]} names of factors, got {', '.join(columns)}")
    runs = [name for name, _ in itertools.groupby(columns)]
    if len(runs) != len(set(runs)):
        raise ValueError(f"expected a factor's columns side by side, got {', '.join(columns)}")
    return tuple(columns)
