"""The TFRecord container: checksummed records in a file that may be compressed."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

_READ = 1 << 16
_HEADER = 12  # u64 length and u32 checksum of it
_FOOTER = 4  # u32 checksum of the payload
_LARGEST_RECORD = 1 << 28


def masked_checksum(data: bytes) -> int:
    """TFRecord's rotated and offset CRC32C of `data`."""
    import google_crc32c

    value = google_crc32c.value(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def is_compressed(start: bytes) -> bool | None:
    """Whether a TFRecord file that starts with these 12 bytes is compressed; None if foreign."""
    if len(start) == _HEADER and masked_checksum(start[:8]) == _u32(start[8:]):
        return False
    zlib_header = start[:1] == b"\x78" and int.from_bytes(start[:2], "big") % 31 == 0
    return True if zlib_header or start.startswith(b"\x1f\x8b") else None


class Mark(NamedTuple):
    """A place in a file from which reading can go on.

    Attributes:
        position: number of the record that comes next.
        offset: in the file.
        inflater: the state of the decompression there; None of a plain file.
    """

    position: int
    offset: int
    inflater: Any


class RecordReader:
    """Reads the records of a file in order, with memory for no more than one of them.

    Args:
        path: a TFRecord file, plain or compressed with GZIP or ZLIB.

    Raises:
        ValueError: if the file is empty or something else. Here and while reading, the message
            names the file, the number of the record, and the cause.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._file = path.open("rb")
        try:
            self._compressed = self._find_compression()
        except ValueError:
            self._file.close()
            raise
        self._inflater = zlib.decompressobj(wbits=47)  # 47: GZIP or ZLIB by their headers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def is_compressed(self) -> bool:
        """Whether the file is compressed."""
        return self._compressed

    def mark(self) -> Mark:
        """The place that reading has come to."""
        inflater = self._inflater.copy() if self._compressed else None
        return Mark(self.position, self._file.tell(), inflater)

    def go_to(self, mark: Mark) -> None:
        """Go on from a place of the same file."""
        self.position = mark.position
        self._file.seek(mark.offset)
        if mark.inflater is not None:
            self._inflater = mark.inflater.copy()

    def __iter__(self) -> Iterator[bytes]:
        """The payloads of the records that are left."""
        while (payload := self.next()) is not None:
            yield payload

    def next(self) -> bytes | None:
        """The payload of the next record, or None after the last."""
        try:
            payload = self._next()
        except (ValueError, zlib.error) as error:
            raise ValueError(f"{self.path}: record {self.position}: {error}") from None
        self.position += payload is not None
        return payload

    def _find_compression(self) -> bool:
        start = self._file.read(_HEADER)
        self._file.seek(0)
        if not start:
            raise ValueError(f"{self.path}: expected a TFRecord file, got an empty file")
        compressed = is_compressed(start)
        if compressed is None:
            raise ValueError(
                f"{self.path}: record 0: neither a TFRecord's length with its checksum nor GZIP "
                f"or ZLIB data (the file starts with {start[:4].hex(' ')})"
            )
        return compressed

    def _next(self) -> bytes | None:
        header = self._read(_HEADER)
        if not header:
            return None
        if len(header) < _HEADER:
            raise ValueError(f"the file ends {len(header)} bytes into a record's header")
        length = int.from_bytes(header[:8], "little")
        if masked_checksum(header[:8]) != _u32(header[8:]):
            raise ValueError("the checksum of the length is wrong")
        if length > _LARGEST_RECORD:
            raise ValueError(f"expected at most {_LARGEST_RECORD} bytes, got a length of {length}")
        if not self._compressed:  # lest memory be taken for what is not there
            length_left = os.fstat(self._file.fileno()).st_size - self._file.tell()
            if length_left < length + _FOOTER:
                raise ValueError(f"the file ends {length_left} bytes into a payload of {length}")
        body = self._read(length + _FOOTER)
        if len(body) < length + _FOOTER:
            raise ValueError(f"the file ends {len(body)} bytes into a payload of {length}")
        payload = body[:length]
        if masked_checksum(payload) != _u32(body[length:]):
            raise ValueError("the checksum of the payload is wrong")
        return payload

    def _read(self, count: int) -> bytes:
        """The next `count` bytes after decompression, fewer at the end of the file."""
        if not self._compressed:
            return self._file.read(count)
        parts: list[bytes] = []
        while count > 0 and (part := self._inflate(count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _inflate(self, most: int) -> bytes:
        """Some bytes after decompression, at most `most`; none at the end of the file."""
        while True:
            waiting = self._inflater.unconsumed_tail
            if self._inflater.eof:  # another member may follow, behind zeros that fill a block
                waiting = self._inflater.unused_data.lstrip(b"\0")
                while not waiting:
                    if not (more := self._file.read(_READ)):
                        return b""
                    waiting = more.lstrip(b"\0")
                self._inflater = zlib.decompressobj(wbits=47)
            compressed = waiting or self._file.read(_READ)
            if part := self._inflater.decompress(compressed, most):
                return part
            if not compressed and not self._inflater.eof:
                raise ValueError("the compressed data end early")


def _u32(data: bytes) -> int:
    number: int = struct.unpack("<I", data)[0]
    return number
