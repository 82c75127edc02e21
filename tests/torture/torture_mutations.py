"""What disks, transfers, editors and attackers do to files: functions of a random generator."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from numpy.lib import format as npy

CANARY = "torture-canary"
"""A file that code hidden in a mutated file makes in the current folder, if it is ever run."""
YAML_CODE = f"model: !!python/object/apply:os.mkdir [{CANARY}]\n".encode()
ODD = [
    b"null",
    b"-1",
    b"1e999",
    b"0",
    b"[]",
    b"{}",
    b'"x"',
    b"true",
    b"NaN",
    b"9" * 30,
    b"[" * 5000,
]


RECALCULATED = ("delete_entry", "swap_entries", "replace_entry", "hide_code", "declare_more")
"""Changes after which a zip has the right checksums: other numbers may be read then."""


class Code:
    """Makes the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (CANARY,)


def mutate(rng: random.Random, content: bytes, name: str) -> tuple[str, bytes]:
    """One random change, of bytes or of the parts that a file of that name has, and its name."""
    changes = [flip, flip, overwrite, truncate, delete, repeat, swap, blank, insert]
    if name.endswith((".json", ".yaml", ".jsonl", "SHA256SUMS")):
        changes += [change_word, change_word, delete_line, swap_lines, append_code]
    if content.startswith(b"PK\x03\x04"):
        changes += [delete_entry, swap_entries, replace_entry, hide_code]
    if name.endswith(".npy"):
        changes += [declare_more, declare_more, replace_by_code]
    if name.endswith(".npz"):
        changes += [declare_more]
    if name.endswith(".png"):
        changes += [enlarge_png, enlarge_png]
    if name.endswith(".bmp"):
        changes += [enlarge_bmp, enlarge_bmp]
    if name.endswith(".safetensors"):
        changes += [change_header, change_header, change_header]
    change = rng.choice(changes)
    return change.__name__, change(rng, content)


def span(rng: random.Random, content: bytes) -> tuple[int, int]:
    """A range; half of them are short."""
    first = rng.randrange(len(content))
    return first, first + rng.randint(1, rng.choice([16, len(content) - first]))


def flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(rng: random.Random, content: bytes) -> bytes:
    first, end = span(rng, content)
    return content[:first] + rng.randbytes(min(end, len(content)) - first) + content[end:]


def truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def delete(rng: random.Random, content: bytes) -> bytes:
    first, end = span(rng, content)
    return content[:first] + content[end:]


def repeat(rng: random.Random, content: bytes) -> bytes:
    first, end = span(rng, content)
    return content[:end] + content[first:]


def swap(rng: random.Random, content: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(content) + 1) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def blank(rng: random.Random, content: bytes) -> bytes:
    first, end = span(rng, content)
    return content[:first] + bytes(min(end, len(content)) - first) + content[end:]


def insert(rng: random.Random, content: bytes) -> bytes:
    first = rng.randrange(len(content) + 1)
    return content[:first] + rng.randbytes(rng.randint(1, 64)) + content[first:]


def change_word(rng: random.Random, content: bytes) -> bytes:
    words = content.split(b" ")
    words[rng.randrange(len(words))] = rng.choice(ODD) + rng.choice([b"", b",", b"\n", b",\n"])
    return b" ".join(words)


def delete_line(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def swap_lines(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def append_code(rng: random.Random, content: bytes) -> bytes:
    return rng.choice([YAML_CODE, content + YAML_CODE])


def entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return buffer.getvalue()


def delete_entry(rng: random.Random, content: bytes) -> bytes:
    parts = entries(content)
    del parts[rng.choice([*parts])]
    return zipped(parts)


def swap_entries(rng: random.Random, content: bytes) -> bytes:
    """Entries change places: tensors of other sizes, or no tensors; checksums are right."""
    parts = entries(content)
    names = rng.sample([name for name in parts if not name.endswith("data.pkl")], 2)
    if len(parts[names[0]]) == len(parts[names[1]]):
        parts[names[0]] = parts[names[0]][:-1]  # equal sizes would be another, valid file
    parts[names[0]], parts[names[1]] = parts[names[1]], parts[names[0]]
    return zipped(parts)


def replace_entry(rng: random.Random, content: bytes) -> bytes:
    """The pickle itself is changed, or an array; its checksum is right."""
    parts = entries(content)
    name = pickle_of(rng, parts)
    parts[name] = rng.choice([truncate, delete, blank])(rng, parts[name])
    return zipped(parts)


def pickle_of(rng: random.Random, parts: dict[str, bytes]) -> str:
    """The entry that a pickle of torch's is; of an archive of arrays, any."""
    found = next((name for name in parts if name.endswith("data.pkl")), None)
    return found or rng.choice([*parts])


def hide_code(rng: random.Random, content: bytes) -> bytes:
    parts = entries(content)
    name = pickle_of(rng, parts)
    hidden = rng.choice([Code(), {"model": Code()}, {"step": Code()}])
    parts[name] = array_of(hidden) if name.endswith(".npy") else pickle.dumps(hidden, 2)
    return zipped(parts)


def array_of(hidden: object) -> bytes:
    """An array of Python objects, which numpy pickles."""
    stream = io.BytesIO()
    npy.write_array(stream, np.array([hidden], dtype=object), allow_pickle=True)
    return stream.getvalue()


def replace_by_code(rng: random.Random, content: bytes) -> bytes:
    return array_of(Code())


def declare_more(rng: random.Random, content: bytes) -> bytes:
    """An array, or one of an archive, is said to be longer along an axis than it is."""
    if content.startswith(b"PK"):
        parts = entries(content)
        name = rng.choice([*parts])
        parts[name] = declare_more(rng, parts[name])
        return zipped(parts)
    stream = io.BytesIO(content)
    npy.read_magic(stream)
    shape, in_fortran, dtype = npy.read_array_header_1_0(stream)
    sides = [*shape]
    sides[rng.randrange(len(sides))] *= rng.choice([2, 2**20, 2**40])
    header = io.BytesIO()
    described = {"shape": (*sides,), "fortran_order": in_fortran, "descr": dtype.str}
    npy.write_array_header_1_0(header, described)
    return header.getvalue() + stream.read()


def enlarge_png(rng: random.Random, content: bytes) -> bytes:
    """A picture is said to be larger than it is; the checksum is right."""
    sides = larger(rng, struct.unpack(">II", content[16:24]))
    header = content[12:16] + struct.pack(">II", *sides) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def enlarge_bmp(rng: random.Random, content: bytes) -> bytes:
    sides = larger(rng, struct.unpack("<II", content[18:26]))
    return content[:18] + struct.pack("<II", *sides) + content[26:]


def larger(rng: random.Random, sides: tuple[int, ...]) -> list[int]:
    """Width and height, of which one is more, or both are."""
    factors = rng.choice([(1, 2), (2, 1), (2**10, 2**10), (2**20, 1), (1, 2**24)])
    return [side * factor for side, factor in zip(sides, factors, strict=True)]


def change_header(rng: random.Random, content: bytes) -> bytes:
    """A tensor is missing, renamed, or described wrongly."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header.pop(name)
    kind = rng.choice(["missing", "renamed", "dtype", "shape", "offsets"])
    if kind == "renamed":
        header[name + "_"] = entry
    elif kind != "missing":
        begin, end = entry["data_offsets"]
        entry |= {
            "dtype": {"dtype": rng.choice(["I32", "BF16", "F64", "X9", "BOOL"])},
            "shape": {"shape": rng.choice([[2**62], [-1], [], [*entry["shape"], 1], ["x"]])},
            "offsets": {"data_offsets": rng.choice([[begin, 2**60], [end, begin], [begin]])},
        }[kind]
        header[name] = entry
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
