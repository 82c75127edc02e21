"""The protocol buffer `tf.train.Example`: named lists of bytes, floats or integers.

Wire format: https://protobuf.dev/programming-guides/encoding; messages: tensorflow/core/example.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def parse_example(payload: bytes, wanted: Container[str] | None = None) -> dict[str, NDArray[Any]]:
    """The features of a serialised `tf.train.Example`.

    Args:
        payload: one record of a TFRecord file.
        wanted: names of the features to decode; None for all.

    Returns:
        Name -> uint8 (byte strings, joined), float32 or int64, one-dimensional.

    Raises:
        ValueError: if the payload is not such a message.
    """
    features: dict[str, NDArray[Any]] = {}
    for example in _messages(memoryview(payload), 1):
        for entry in _messages(example, 1):
            name, content = "", memoryview(b"")
            for number, field in _fields(entry):
                if number == 1 and isinstance(field, memoryview):
                    name = bytes(field).decode("utf-8", "replace")
                elif number == 2 and isinstance(field, memoryview):
                    content = field
            if wanted is None or name in wanted:
                features[name] = _feature(content)
    return features


def _feature(feature: memoryview) -> NDArray[Any]:
    for number, values in _fields(feature):
        if not isinstance(values, memoryview):
            raise ValueError(f"expected a list of values in a Feature, got the number {values}")
        if number == _BYTES_LIST:
            return _bytes_list(values)
        if number == _FLOAT_LIST:
            return _float_list(values)
        if number == _INT64_LIST:
            return _int64_list(values)
    return np.empty(0, dtype=np.uint8)


def _bytes_list(values: memoryview) -> NDArray[np.uint8]:
    """The strings joined; DeepMind's files hold one string for each byte: 0A 01 xx, 0A 01 xx, .."""
    triples = np.frombuffer(values, dtype=np.uint8)
    if len(triples) % 3 == 0:
        tag, length, content = triples.reshape(-1, 3).T
        if (tag == 0x0A).all() and (length == 1).all():
            return content
    return np.frombuffer(b"".join(_messages(values, 1)), dtype=np.uint8)


def _float_list(values: memoryview) -> NDArray[np.float32]:
    packed = b"".join(v for n, v in _fields(values) if n == 1 and isinstance(v, memoryview))
    if len(packed) % 4:
        raise ValueError(f"expected 4 bytes for each float, got {len(packed)} bytes")
    return np.frombuffer(packed, dtype="<f4").astype(np.float32, copy=False)


def _int64_list(values: memoryview) -> NDArray[np.int64]:
    numbers: list[int] = []
    for number, value in _fields(values):
        if number == 1 and isinstance(value, int):
            numbers.append(value)
        elif number == 1 and isinstance(value, memoryview):
            end = 0
            while end < len(value):
                item, end = _varint(value, end)
                numbers.append(item)
    return np.array(numbers, dtype=np.uint64).astype(np.int64)


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The length-delimited fields with the number `wanted`."""
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) in order; a varint is an int, everything else its bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"expected a protocol buffer, got wire type {wire_type}")
        if length > len(message) - position:
            left = len(message) - position
            raise ValueError(f"a field of {length} bytes has only {left} bytes left")
        yield number, message[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The unsigned number at `position` and the position behind it."""
    value = shift = 0
    while shift < 70:
        if position >= len(data):
            raise ValueError("the message ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
    raise ValueError("expected a number of at most 64 bits, got a longer one")
