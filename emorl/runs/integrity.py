"""Whether files are as they were written: SHA-256 beside a model's, CRC-32 within torch's."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emorl.runs.folder import CHECKSUMS

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_ZIP = b"PK\x03\x04"


class DamagedError(ValueError):
    """A file is not as it was written, or a part of it is missing."""


def write_checksums(folder: Path) -> None:
    """Write the checksums of a folder's files, as `sha256sum -c SHA256SUMS` reads them."""
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines))


def read_verified(path: Path) -> bytes:
    """The content of a file, compared with its checksum; older folders have none.

    Raises:
        DamagedError: if the file is missing, or not as it was written.
    """
    if os.path.lexists(path) and not path.is_file():  # a pipe would never end
        raise DamagedError(f"{path}: expected a file")
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DamagedError(f"{path}: missing") from None
    expected = _checksums(path.with_name(CHECKSUMS))
    if expected is None:
        return content
    if path.name not in expected:
        raise DamagedError(f"{path}: not listed in {CHECKSUMS}")
    if hashlib.sha256(content).hexdigest() != expected[path.name]:
        raise DamagedError(f"{path}: damaged or edited: its SHA-256 is not the one in {CHECKSUMS}")
    return content


def has_checksums(folder: Path) -> bool:
    """Whether a folder's files can be told from damaged ones."""
    return (folder / CHECKSUMS).exists()


def tensors_of(content: bytes, path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; no code in it is ever run.

    Args:
        content: of the file, whose own checksums (CRC-32) are compared.
        path: its name in messages.

    Raises:
        DamagedError: if it is damaged or holds more than tensors and plain values.
    """
    try:
        if content.startswith(_ZIP):  # torch before 1.6 wrote files without checksums
            _check_crc(content)
        found = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        _require_numbers(found)
        return found
    except Exception as error:  # torch raises many types for broken or unsafe files
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamagedError(
            f"{path}: damaged, or more than tensors and plain values: {reason}"
        ) from None


def _require_numbers(value: Any) -> None:
    """Refuse tensors without numbers of their own, or without one for each place."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            _require_numbers(part)
    elif isinstance(value, Tensor) and (value.layout != torch.strided or not value.is_cpu):
        raise TypeError(f"a tensor of {value.layout} on {value.device}")


def _check_crc(content: bytes) -> None:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        if bad := archive.testzip():
            raise zipfile.BadZipFile(f"{bad} does not match its CRC-32")


def _checksums(path: Path) -> dict[str, str] | None:
    """Name -> SHA-256, as written; None where there is no such file."""
    if os.path.lexists(path) and not path.is_file():
        raise DamagedError(f"{path}: expected a file")
    try:
        lines = path.read_bytes().decode().splitlines()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise DamagedError(f"{path}: damaged, not text") from None
    matches = [_LINE.fullmatch(line) for line in lines]
    if not all(matches):
        raise DamagedError(f"{path}: damaged, expected lines of a SHA-256 and a name")
    return {match[2]: match[1] for match in matches if match}
