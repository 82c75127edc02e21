"""DeepMind's multi-object TFRecord files, read without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emorl.data.base import Batch
from emorl.data.readers.base import FileDataset, label_map
from emorl.data.readers.tfrecord_example import parse_example
from emorl.data.readers.tfrecord_index import Record, Records
from emorl.data.readers.tfrecord_layouts import Scene, recognise
from emorl.data.splits import needed, published, shown
from emorl.data.values import LOOKED_AT, ValueRange, decide

MEMORY_LIMIT = 256 << 20
"""Files that inflate to at most this many bytes are kept in memory."""


class TFRecordDataset(FileDataset):
    """One of DeepMind's data sets, recognised from the first record; a video is 33 images.

    Files that inflate to more than `MEMORY_LIMIT` bytes are read from disk. Of compressed ones
    that is slow in random order, as `slow` says, since what lies between two places of the index
    (`tfrecord_index`) has to be inflated. Their length is counted when it is first asked for, or
    when it tells whether there are splits, which takes as long as inflating them.

    Args:
        paths: a file, or the shards of one in their order, plain or compressed with GZIP or ZLIB.
        value_range: what the images' numbers mean; None for 0 to 255, which the layouts define.
        split: of files with as many records as `emorl.data.splits` tells; others are one split.

    Raises:
        ValueError: if a file is empty, damaged or something else; the message names the file,
            the number of the record, and the cause. Larger files are checked as they are read.
    """

    def __init__(
        self,
        paths: Path | Sequence[Path],
        value_range: ValueRange | None = None,
        split: str = "train",
    ) -> None:
        self.paths = [paths] if isinstance(paths, Path) else [*paths]
        self.path = self.paths[0]
        self._kept: list[Record] | None = None
        self._count: int | None = None
        self._records = Records(self.paths)
        self._load(value_range)
        self.name, self.image_size = self.layout.name, self.layout.image_size
        self.value_range = self.values.range
        self._first, self._last = self._find_images(split)
        self.is_whole = self.part is None
        if not self.in_memory:
            shown = self.path if len(self.paths) == 1 else f"{self.path} ..."
            self.slow = (
                f"{shown}: reading in random order inflates up to a few hundred records for each; "
                f"store it as HDF5: emorl data convert {self.path} --out FILE.h5"
            )

    def files(self) -> Sequence[Path]:
        """All shards."""
        return self.paths

    def _find_images(self, split: str) -> tuple[int, int | None]:
        """The first record of the split and the one behind its last; None for the file's end.

        Records are counted only where a file may be divided.
        """
        least = needed(self.layout.name)
        if self._count is not None and self._count < max(least, 1):
            return 0, None
        try:
            images = published(self.layout.name, split)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        if images is None or self._records.count(least) < least:
            return 0, None
        self.part = shown(split, images)
        return images.start, images.stop

    def __len__(self) -> int:
        if self._count is None:
            self._count = self._records.count(self._last)
        end = self._count if self._last is None else min(self._count, self._last)
        return (end - self._first) * self.layout.frames

    def count(self, most: int) -> int:
        """The number of images, but at most `most`, looking no further into the files."""
        if self._count is not None:
            return min(most, len(self))
        end = self._first - (-most // self.layout.frames)
        end = self._records.count(end if self._last is None else min(end, self._last))
        return min(most, (end - self._first) * self.layout.frames)

    @property
    def in_memory(self) -> bool:
        """Whether the files are small enough to be kept in memory."""
        return self._kept is not None

    def read(self, indices: Sequence[int]) -> tuple[Batch, Tensor]:
        """The images at `indices` and their entity masks, uint8 0 or 255 [B, E, H, W].

        Raises:
            ValueError: if a record is damaged.
        """
        if not len(indices):
            batch, entity_masks = self.read([0])
            return batch.apply(lambda tensor: tensor[:0]), entity_masks[:0]
        self._require_known(indices)
        scenes = []
        for record, frame, features in self._features(indices, self.layout.keys):
            with _named(record):
                scene = self.layout.decode(features, self.values, frame)
                self._require_same_shapes(scene)
            scenes.append(scene)
        images, masks, factors = zip(*scenes, strict=True)
        entity_masks = torch.from_numpy(np.stack(masks))
        labels = label_map(entity_masks)
        batch = Batch(
            image=torch.from_numpy(np.stack(images)),
            mask=labels - labels.clamp(max=self.layout.backgrounds - 1),
            factors={
                name: torch.from_numpy(np.stack([values[name] for values in factors]))
                for name in factors[0]
            },
            index=torch.tensor(indices),
        )
        return batch, entity_masks

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """The images alone, uint8 [B, 3, H, W]; errors as `read`'s, but for masks and factors."""
        if not len(indices):
            return super().read_images(indices)
        self._require_known(indices)
        images = []
        for record, frame, features in self._features(indices, ("image",)):
            with _named(record):
                images.append(self.layout.decode_image(features, self.values, frame))
        return torch.from_numpy(np.stack(images))

    def visible(self, indices: Sequence[int]) -> Tensor:
        """As for any file; nothing else is decoded."""
        counts = []
        for index, (record, _, features) in zip(
            indices, self._features(indices, ("visibility",)), strict=True
        ):
            with _named(record):
                factors = {name: torch.tensor(values)[None] for name, values in features.items()}
                counts.append(self._count_visible(factors, [index])[0])
        return torch.stack(counts)

    def describe(self) -> list[str]:
        """The data set's variant, and the files."""
        files = "a file" if len(self.paths) == 1 else f"{len(self.paths)} files"
        place = "in memory" if self.in_memory else "read from disk"
        entities = self._shapes["mask"][0]
        variant = self.layout.variant(entities)
        return [f"layout: DeepMind's TFRecord, {variant}, {entities} entities; {files}, {place}"]

    def _require_known(self, indices: Sequence[int]) -> None:
        most = max(indices, default=0) // self.layout.frames
        beyond = self._last is not None and most >= self._last - self._first
        if self._count is not None or beyond or (indices and min(indices) < 0):
            self._require_indices(indices, len(self))

    def _features(
        self, indices: Sequence[int], keys: Sequence[str] | frozenset[str]
    ) -> Iterator[tuple[Record, int, dict[str, NDArray[Any]]]]:
        """The record of each image, the image's frame in it, and the features `keys`."""
        features: dict[str, NDArray[Any]] = {}
        record, found = None, -1
        for index in indices:
            number, frame = divmod(index, self.layout.frames)
            number += self._first
            if record is None or number != found:
                record = self._kept[number] if self._kept else self._records.record(number)
                with _named(record):
                    features, found = parse_example(record.payload, keys), number
            yield record, frame, features

    def _load(self, asked: ValueRange | None) -> None:
        """Recognise the first record, keep all payloads if they are few, and look at the range."""
        kept: list[Record] = []
        size, records, brightest = 0, 0, 0.0
        for record in self._records:
            if records == 0:
                self._recognise(record, asked)
            records += 1
            size += len(record.payload)
            if size <= MEMORY_LIMIT:
                kept.append(record)
            looked = records > LOOKED_AT or self.values.is_settled(brightest)
            if not looked:
                brightest = max(brightest, self._brightest(record))
            elif size > MEMORY_LIMIT:
                break
        if records == 0:
            raise ValueError(f"{self.path}: expected a TFRecord file with records, got none")
        try:
            self.values.require_bright(brightest, min(records, LOOKED_AT))
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        if size <= MEMORY_LIMIT:
            self._kept, self._count = kept, records

    def _recognise(self, record: Record, asked: ValueRange | None) -> None:
        """The layout and the range of values, from the first record."""
        with _named(record):
            features = parse_example(record.payload)
            layout = recognise(features)
            self.values = decide(asked, None, "DeepMind's records", features["image"].dtype)
            self.layout = layout.with_masks_of(features)
            self._shapes = _shapes(self.layout.decode(features, self.values))

    def _brightest(self, record: Record) -> float:
        """The largest value of a record's image, 0 where it has none."""
        with _named(record):
            image = parse_example(record.payload, ("image",)).get("image", np.zeros(0))
            self.values.to_bytes(image[None])
        return float(image.max(initial=0))

    def _require_same_shapes(self, scene: Scene) -> None:
        if (shapes := _shapes(scene)) != self._shapes:
            expected, got = _in_words(self._shapes), _in_words(shapes)
            raise ValueError(f"expected {expected} as in record 0, got {got}")


@contextmanager
def _named(record: Record) -> Iterator[None]:
    """Complaints begin with the file's name and the record's number."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{record.path}: record {record.number}: {error}") from None


def _shapes(scene: Scene) -> dict[str, tuple[int, ...]]:
    """What all scenes of a file have in common."""
    image, masks, factors = scene
    return {name: a.shape for name, a in {"image": image, "mask": masks, **factors}.items()}


def _in_words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
