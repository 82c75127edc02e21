"""DeepMind's multi-object TFRecord files, read without TensorFlow."""

from __future__ import annotations

import itertools
import os
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
from emorl.data.readers.tfrecord_container import RecordReader
from emorl.data.readers.tfrecord_example import parse_example
from emorl.data.readers.tfrecord_layouts import recognise
from emorl.data.values import LOOKED_AT, ValueRange, decide

MEMORY_LIMIT = 256 << 20
"""Files that inflate to at most this many bytes are kept in memory and read in any order."""

Record = tuple[NDArray[np.uint8], NDArray[Any], dict[str, NDArray[np.float32]]]
"""Image, entity masks and factors; `Layout.decode` gives the shapes."""


class TFRecordDataset(FileDataset):
    """Tetrominoes, Multi-dSprites or CLEVR with masks, recognised from the first record.

    A file that inflates to more than `MEMORY_LIMIT` bytes can only be read in order (which is
    what converting to HDF5 does), since compressed data have no addresses. Its length is counted
    when it is first asked for, which takes as long as inflating the file.

    Args:
        path: a file, plain or compressed with GZIP or ZLIB.
        value_range: what the images' numbers mean; None for 0 to 255, which the layouts define.

    Raises:
        ValueError: if the file is empty, damaged or something else; the message names the file,
            the number of the record, and the cause. Larger files are checked as they are read.
    """

    def __init__(self, path: str | Path, value_range: ValueRange | None = None) -> None:
        self.path = Path(path)
        self._payloads: list[bytes] | None = None
        self._count: int | None = None
        self._reader: tuple[int, RecordReader] | None = None
        self._load(value_range)
        self.name, self.image_size = self._layout.name, self._layout.image_size
        self.value_range = self.values.range

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def __len__(self) -> int:
        if self._count is None:
            self._count = self._count_records(None)
        return self._count

    def count(self, most: int) -> int:
        """The number of records, but at most `most`, looking no further into the file."""
        return min(most, self._count) if self._count is not None else self._count_records(most)

    def _count_records(self, most: int | None) -> int:
        with RecordReader(self.path) as reader:
            return sum(1 for _ in itertools.islice(reader, most))

    @property
    def in_memory(self) -> bool:
        """Whether the file is small enough to be read in any order."""
        return self._payloads is not None

    def read(self, indices: Sequence[int]) -> tuple[Batch, Tensor | None]:
        """The images at `indices` and their entity masks, uint8 0 or 255 [B, E, H, W].

        Raises:
            ValueError: if a record is damaged, or the file is large and not read in order.
        """
        self._require_known(indices)
        records = [self._decode(i, p) for i, p in zip(indices, self._fetch(indices), strict=True)]
        images, masks, factors = zip(*records, strict=True)
        entity_masks = torch.from_numpy(np.stack(masks))
        batch = Batch(
            image=torch.from_numpy(np.stack(images)),
            mask=label_map(entity_masks),
            factors={
                name: torch.from_numpy(np.stack([values[name] for values in factors]))
                for name in factors[0]
            },
            index=torch.tensor(indices),
        )
        return batch, entity_masks

    def read_images(self, indices: Sequence[int]) -> Tensor:
        """The images alone, uint8 [B, 3, H, W]; errors as `read`'s, but for masks and factors."""
        self._require_known(indices)
        images = []
        for index, payload in zip(indices, self._fetch(indices), strict=True):
            with self._named(index):
                features = parse_example(payload, ("image",))
                images.append(self._layout.decode_image(features, self.values))
        return torch.from_numpy(np.stack(images))

    def _require_known(self, indices: Sequence[int]) -> None:
        if self._count is not None or (indices and min(indices) < 0):
            self._require_indices(indices, len(self))

    def _load(self, asked: ValueRange | None) -> None:
        """Recognise the first record, keep all payloads if they are few, and look at the range."""
        payloads: list[bytes] = []
        size, records, brightest = 0, 0, 0.0
        with RecordReader(self.path) as reader:
            for payload in reader:
                if records == 0:
                    self._recognise(payload, asked)
                records += 1
                size += len(payload)
                if size <= MEMORY_LIMIT:
                    payloads.append(payload)
                looked = records > LOOKED_AT or self.values.is_settled(brightest)
                if not looked:
                    brightest = max(brightest, self._brightest(records - 1, payload))
                elif size > MEMORY_LIMIT:
                    break
        if records == 0:
            raise ValueError(f"{self.path}: expected a TFRecord file with records, got none")
        with self._named(None):
            self.values.require_bright(brightest, min(records, LOOKED_AT))
        if size <= MEMORY_LIMIT:
            self._payloads, self._count = payloads, records

    def _recognise(self, payload: bytes, asked: ValueRange | None) -> None:
        """The layout and the range of values, from the first record."""
        with self._named(0):
            features = parse_example(payload)
            self._layout = recognise(features)
            self.values = decide(asked, None, "DeepMind's records", features["image"].dtype)
            self._shapes = _shapes(self._layout.decode(features, self.values))

    def _brightest(self, index: int, payload: bytes) -> float:
        """The largest value of a record's image, 0 where it has none."""
        with self._named(index):
            image = parse_example(payload, ("image",)).get("image", np.zeros(0))
            self.values.to_bytes(image[None])
        return float(image.max(initial=0))

    def _decode(self, index: int, payload: bytes) -> Record:
        with self._named(index):
            record = self._layout.decode(parse_example(payload), self.values)
            if (shapes := _shapes(record)) != self._shapes:
                expected, got = _in_words(self._shapes), _in_words(shapes)
                raise ValueError(f"expected {expected} as in record 0, got {got}")
        return record

    @contextmanager
    def _named(self, index: int | None) -> Iterator[None]:
        """Complaints begin with the file's name, and the record's number if there is one."""
        try:
            yield
        except ValueError as error:
            record = "" if index is None else f"record {index}: "
            raise ValueError(f"{self.path}: {record}{error}") from None

    def _fetch(self, indices: Sequence[int]) -> Iterator[bytes]:
        if self._payloads is not None:
            return iter([self._payloads[index] for index in indices])
        return self._in_order(indices)

    def _in_order(self, indices: Sequence[int]) -> Iterator[bytes]:
        """Payloads from this process's own reader, which can only go on or start anew at 0."""
        pid, reader = self._reader or (None, None)
        if pid != os.getpid() or reader is None or (indices and indices[0] == 0):
            if reader is not None:
                reader.close()
            reader = RecordReader(self.path)
            self._reader = (os.getpid(), reader)
        ascending = all(a < b for a, b in itertools.pairwise(indices))
        if not ascending or (indices and indices[0] < reader.position):
            raise ValueError(
                f"{self.path}: too large for reading in any order, only from the first record on; "
                f"store it as HDF5 first: emorl data convert {self.path} FILE.h5"
            )
        for index in indices:
            while (payload := reader.next()) is not None and reader.position <= index:
                pass
            if payload is None:
                raise IndexError(f"{self.path}: index {index} beyond {reader.position} records")
            yield payload


def _shapes(record: Record) -> dict[str, tuple[int, ...]]:
    """What all records of a file have in common."""
    image, masks, factors = record
    return {name: a.shape for name, a in {"image": image, "mask": masks, **factors}.items()}


def _in_words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
