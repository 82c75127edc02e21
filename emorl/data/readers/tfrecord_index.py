"""Records of several files by their numbers, in any order."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emorl.data.readers.tfrecord_container import Mark, RecordReader

MOST_MARKS = 512
"""Places kept of compressed files in each process; a place is zlib's state, about 40 kB."""
_MOST_PLAIN_MARKS = 1 << 20


class Record(NamedTuple):
    """A record, its file, and its number in that file."""

    path: Path
    number: int
    payload: bytes


class Records:
    """The records of files, one file after the other, as if they were one.

    Places are marked while the files are read, in each process for itself. Of a plain file that
    is each record; of compressed ones, `MOST_MARKS` at even distances, between which records are
    inflated anew.

    Args:
        paths: of the files, which are opened when they are first read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        most = max(MOST_MARKS // len(paths), 1)
        self._shards = [_Shard(path, most) for path in paths]

    def __iter__(self) -> Iterator[Record]:
        """All records in order.

        Raises:
            ValueError: if a file is damaged; it names file and record.
        """
        for shard in self._shards:
            with RecordReader(shard.path) as reader:
                for number, payload in enumerate(reader):
                    yield Record(shard.path, number, payload)

    def count(self, most: int | None = None) -> int:
        """The number of records, but at most `most`, looking no further into the files."""
        found = 0
        for shard in self._shards:
            if most is not None and found >= most:
                break
            found += shard.count(None if most is None else most - found)
        return found

    def record(self, index: int) -> Record:
        """The record with this number.

        Raises:
            IndexError: if there are fewer.
            ValueError: as when all are read in order.
        """
        number = index
        for shard in self._shards:
            if shard.length is None or number < shard.length:
                payload = shard.payload(number)
                if payload is not None:
                    return Record(shard.path, number, payload)
            number -= shard.length or 0
        raise IndexError(f"{self._shards[-1].path}: index {index} beyond {index - number} records")


class _Shard:
    """The records of a file.

    Attributes:
        path: of the file.
        length: number of records; None until the end has been seen.
    """

    def __init__(self, path: Path, most_marks: int) -> None:
        self.path = path
        self.length: int | None = None
        self._most_marks = most_marks
        self._forget()

    def _forget(self) -> None:
        self._reader: RecordReader | None = None
        self._process = os.getpid()
        self._marks: list[Mark] = []
        self._distance = 1  # records from mark to mark

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_marks": [], "_distance": 1}

    def count(self, most: int | None) -> int:
        """The number of records, but at most `most`."""
        if self.length is None and (most is None or self.payload(most - 1) is None):
            reader = self._own_reader()
            while self.length is None:
                self._advance(reader)
        if self.length is None:
            assert most is not None
            return most
        return self.length if most is None else min(most, self.length)

    def payload(self, number: int) -> bytes | None:
        """The payload of a record; None beyond the last."""
        reader = self._own_reader()
        nearest = bisect.bisect_right(self._marks, number, key=lambda mark: mark.position) - 1
        marked = self._marks[nearest].position if nearest >= 0 else 0
        if not marked <= reader.position <= number:
            reader.go_to(self._marks[nearest])
        while reader.position < number:
            if self._advance(reader) is None:
                return None
        return self._advance(reader)

    def _own_reader(self) -> RecordReader:
        """This process's own reader: an open file must not cross a fork."""
        if self._reader is None or self._process != os.getpid():
            self._forget()
            self._reader = RecordReader(self.path)
        return self._reader

    def _advance(self, reader: RecordReader) -> bytes | None:
        """The next payload; a place on the way is marked when it is far from the last one."""
        if not self._marks or reader.position >= self._marks[-1].position + self._distance:
            self._marks.append(reader.mark())
            most = self._most_marks if reader.is_compressed else _MOST_PLAIN_MARKS
            if len(self._marks) > most:
                self._marks, self._distance = self._marks[::2], 2 * self._distance
        try:
            payload = reader.next()
        except (ValueError, OSError):
            self._forget()  # the file has gone on, the number has not
            raise
        if payload is None:
            self.length = reader.position
        return payload
