"""What disks, transfers, editors and attackers do to files: functions of a random generator."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable

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


RECALCULATED = ("delete_entry", "swap_entries", "replace_entry", "hide_code")
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
    """The pickle itself is changed; its checksum is right."""
    parts = entries(content)
    name = next(name for name in parts if name.endswith("data.pkl"))
    parts[name] = rng.choice([truncate, delete, blank])(rng, parts[name])
    return zipped(parts)


def hide_code(rng: random.Random, content: bytes) -> bytes:
    parts = entries(content)
    name = next(name for name in parts if name.endswith("data.pkl"))
    parts[name] = pickle.dumps(rng.choice([Code(), {"model": Code()}, {"step": Code()}]), 2)
    return zipped(parts)


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
