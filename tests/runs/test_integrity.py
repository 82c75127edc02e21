"""Files that were altered after they were written."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from training_fakes import FakeModel

from emorl.runs import RunFolder, checkpoint
from emorl.runs.integrity import DamagedError, read_verified, tensors_of

FILES = ("config.json", "model.safetensors", "training.pt", "SHA256SUMS")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = RunFolder(tmp_path).checkpoint(1)
    checkpoint.save(place, FakeModel(), {"values": torch.ones(50)}, keep=1)
    return place


def load(place: Path) -> tuple[FakeModel, dict]:
    return FakeModel.from_pretrained(place), checkpoint.load_state(place)


def altered(content: bytes, chance: random.Random) -> bytes:
    """Some bits flipped, some bytes gone, or some repeated."""
    at, kind = chance.randrange(len(content)), chance.randrange(3)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
    length = chance.randrange(1, 20)
    return content[:at] + content[at : at + length] * (kind == 1) * 2 + content[at + length :]


@pytest.mark.parametrize("name", FILES)
def test_no_altered_file_is_taken(place, name):
    chance = random.Random(name)
    before = (place / name).read_bytes()
    model, _ = load(place)
    for _ in range(100):
        after = altered(before, chance)
        if after == before:
            continue
        (place / name).write_bytes(after)
        if name == "SHA256SUMS" and after.strip(b"\n") == before.strip(b"\n"):
            continue
        with pytest.raises(DamagedError, match=r"damaged|not listed"):
            load(place)
    (place / name).write_bytes(before)
    assert torch.equal(load(place)[0].colours, model.colours)


def test_the_checksums_are_those_of_sha256sum(place):
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum")
    line = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    result = subprocess.run(line, cwd=place, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(": OK") == 3


def test_a_checkpoint_of_an_older_version_has_no_checksums(place):
    (place / "SHA256SUMS").unlink()
    assert torch.equal(load(place)[1]["values"], torch.ones(50))


def test_a_file_without_a_checksum_beside_others_is_refused(place):
    (place / "note.txt").write_text("x")
    with pytest.raises(DamagedError, match=r"note\.txt: not listed in SHA256SUMS"):
        read_verified(place / "note.txt")


def test_numbers_altered_in_a_torch_file_are_seen_without_checksums(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"weights": torch.arange(100.0)}, path)
    content = path.read_bytes()
    assert torch.equal(tensors_of(content, path)["weights"], torch.arange(100.0))
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("/data/0")]
        numbers = archive.read(name)
    at = content.index(numbers)
    for byte in range(0, 400, 40):
        flipped = bytearray(content)
        flipped[at + byte] ^= 1
        with pytest.raises(DamagedError, match=r"model\.pth: damaged.*CRC-32"):
            tensors_of(bytes(flipped), path)


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.ones(3, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_without_a_number_for_each_place_are_refused(tmp_path, tensor):
    """Nobody looks for NaN or infinity in them."""
    torch.save({"model": [{"weight": tensor}]}, tmp_path / "file.pt")
    content = (tmp_path / "file.pt").read_bytes()
    with pytest.raises(DamagedError, match=r"file\.pt: damaged, or more than .*: a tensor of"):
        tensors_of(content, tmp_path / "file.pt")


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_no_file(place, name):
    """Reading it would never end."""
    (place / name).unlink()
    os.mkfifo(place / name)
    with pytest.raises(DamagedError, match=name):
        load(place)


def test_torn_torch_files_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"weights": torch.arange(100.0)}, path)
    content = path.read_bytes()
    for length in (0, 3, 10, len(content) // 2, len(content) - 1):
        with pytest.raises(DamagedError, match=r"model\.pth: damaged, or more than tensors"):
            tensors_of(content[:length], path)
