"""Files that are written whole or not at all: full disks, kills, modes."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

import pytest
import torch
from process_testing import processes
from training_fakes import FakeConfig, FakeImages, FakeModel

from emorl.report import write_pictures, write_report
from emorl.runs import RunFolder, checkpoint
from emorl.runs.files import (
    clean,
    filling,
    read_json,
    replacing,
    require_place,
    write_atomically,
)
from emorl.training.config import TrainerConfig
from emorl.training.trainer import Trainer

ROOM = 300  # bytes that the disk still has


def save_model(folder: Path) -> None:
    FakeModel().save_pretrained(folder / "model")


def save_checkpoint(folder: Path) -> None:
    state = {"values": torch.rand(100)}
    checkpoint.save(folder / "checkpoints/step-00000002", FakeModel(), state, keep=2)


def save_pictures(folder: Path) -> None:
    images = FakeImages().__getitems__([1]).image
    write_pictures(folder, images, FakeModel()(images))


def save_report(folder: Path) -> None:
    write_atomically(folder / "metrics.jsonl", b'{"step": 1, "loss": 2}\n')
    write_report(folder)


def save_file(folder: Path) -> None:
    write_atomically(folder / "file", os.urandom(ROOM + 1))


WRITERS = [save_model, save_checkpoint, save_pictures, save_report, save_file]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fill_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Files take `room` bytes more in all, then the disk is full."""
    plain, left = Path.write_bytes, [room]

    def write(path: Path, data: bytes) -> int:
        plain(path, data[: left[0]])
        if len(data) > left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(data)
        return len(data)

    monkeypatch.setattr(Path, "write_bytes", write)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "again"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, write, is_new):
    torch.manual_seed(1)
    if not is_new:
        write(tmp_path)
    before = content(tmp_path)
    fill_disk(monkeypatch, ROOM)
    if write is save_checkpoint and not is_new:
        write(tmp_path)  # which is there already
    else:
        with pytest.raises(OSError, match="No space left") as raised:
            write(tmp_path)
        assert raised.value.filename is not None
        assert ".unfinished" not in raised.value.filename
    after = content(tmp_path)
    after.pop("metrics.jsonl", None)
    before.pop("metrics.jsonl", None)
    assert after == before
    assert not [p for p in tmp_path.rglob("*") if p.is_dir() and not any(p.iterdir())] or not is_new


def test_a_real_full_disk(tmp_path):
    """A file system of 64 KB, where root may mount one."""
    import subprocess

    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        FakeModel().save_pretrained(tmp_path / "model")
        before = content(tmp_path / "model")
        with (tmp_path / "ballast").open("wb", buffering=0) as ballast:
            ballast.write(bytes(2**20))  # as many of them as fit
        with pytest.raises(OSError, match=r"No space left on device: '.*/model'"):
            FakeModel(FakeConfig(num_slots=7)).save_pretrained(tmp_path / "model")
        assert content(tmp_path / "model") == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["ballast", "model"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_files_that_a_folder_also_holds_stay(tmp_path):
    FakeModel().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    other = FakeModel(FakeConfig(num_slots=7))
    other.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert torch.equal(FakeModel.from_pretrained(tmp_path).colours, other.colours)


def test_death_between_two_files_is_seen(tmp_path, monkeypatch):
    """A folder that exists gets its files one after the other; a mixture is refused."""
    FakeModel().save_pretrained(tmp_path)
    plain, calls = os.replace, []

    def die(*names: Path) -> None:
        calls.append(names)
        if len(calls) == 2:
            raise KeyboardInterrupt
        plain(*names)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        FakeModel(FakeConfig(sigma=0.5)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="damaged"):
        FakeModel.from_pretrained(tmp_path)


def test_a_new_folder_appears_as_a_whole(tmp_path):
    with filling(tmp_path / "a/b") as unfinished:
        (unfinished / "file").write_text("x")
        assert not (tmp_path / "a/b").exists()
    assert (tmp_path / "a/b/file").read_text() == "x"
    with pytest.raises(KeyboardInterrupt), filling(tmp_path / "c/d"):
        raise KeyboardInterrupt
    assert not (tmp_path / "c").exists()


def test_files_of_a_process_at_work_are_not_cleaned(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda count: "1" * (2 * count))  # digits alone
    process = processes.Process(target=_wait, args=(tmp_path / "file",))
    process.start()
    try:
        while not [*tmp_path.iterdir()]:
            process.join(0.01)
        clean(tmp_path)
        (leftover,) = tmp_path.iterdir()
        assert f".{process.pid}." in leftover.name
    finally:
        process.kill()
        process.join()
    clean(tmp_path)
    assert not [*tmp_path.iterdir()]


def _wait(path: Path) -> None:
    import time

    with replacing(path) as unfinished:
        unfinished.write_text("x")
        time.sleep(60)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_files_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        for write in WRITERS:
            write(tmp_path)
        config = TrainerConfig(steps=1, batch_size=2, device="cpu", picture_every=1)
        Trainer(FakeModel(), FakeImages(), config, tmp_path / "run").run()
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        mode = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == mode & ~mask, path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "--json: expected a file, got a folder"),
        ("file/a/b.json", "file is not a folder"),
        ("loop/a.json", "loop is not a folder"),
        ("dangling/b/a.json", "dangling is not a folder"),
        ("pipe", "--json: expected a file, got a device or a pipe"),
        ("link-to-pipe", "--json: expected a file, got a device or a pipe"),
    ],
)
def test_a_place_is_checked_before_the_work(tmp_path, path, message):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, target in {"link-to-pipe": "pipe", "loop": "loop", "dangling": "nowhere"}.items():
        (tmp_path / name).symlink_to(target)
    before = {*tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        require_place(tmp_path / path, "--json")
    require_place(tmp_path / "new/folder/a.json", "--json")
    assert {*tmp_path.iterdir()} == before


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.json").symlink_to("there/real.json")  # which is not there yet
    for text in (b"old", b"new"):
        write_atomically(tmp_path / "link.json", text)
        assert (tmp_path / "there/real.json").read_bytes() == text
    (tmp_path / "model").symlink_to("there/model")
    (tmp_path / "there/model").mkdir()
    save_model(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["link.json", "model", "there"]
    assert (tmp_path / "model").is_symlink()
    FakeModel.from_pretrained(tmp_path / "there/model")


def test_a_device_is_not_read_as_json(tmp_path):
    """Nor is a pipe, which would never end."""
    (tmp_path / "a.json").symlink_to("/dev/null")
    with pytest.raises(ValueError, match=r"a\.json: expected a file, got a device or a pipe"):
        read_json(tmp_path / "a.json")


def test_a_pipe_is_never_replaced(tmp_path):
    """Nor is a device, as /dev/null is for root."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ValueError, match=f"{name}: expected a file, got a device or a pipe"):
            write_atomically(tmp_path / name, b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize("folder", [".", "..", "../in/.."])
def test_a_model_is_saved_into_the_folder_that_one_is_in(tmp_path, monkeypatch, folder):
    (tmp_path / "a/in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/in")
    FakeModel().save_pretrained(folder)
    place = (tmp_path / "a/in" / folder).resolve()
    FakeModel.from_pretrained(place)
    assert Path.cwd() == tmp_path / "a/in"  # which is still there
    assert not [*place.glob(".*")]


def test_a_folder_that_is_a_disk_is_filled(tmp_path, monkeypatch):
    """As a volume of a container is: it cannot be replaced, and beside it is another disk."""
    (tmp_path / "model").mkdir()
    before = (tmp_path / "model").stat()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "model")
    save_model(tmp_path)
    assert (tmp_path / "model").stat().st_ino == before.st_ino
    FakeModel.from_pretrained(tmp_path / "model")


def test_a_checkpoint_that_was_moved_and_linked_makes_place(tmp_path):
    save_checkpoint(tmp_path)
    (tmp_path / "checkpoints/step-00000002").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoints/step-00000002").symlink_to("../elsewhere")
    state = {"values": torch.rand(1)}
    checkpoint.save(tmp_path / "checkpoints/step-00000004", FakeModel(), state, keep=1)
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000004"]
    assert (tmp_path / "elsewhere/training.pt").exists()  # the user's own


def test_a_place_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="cannot be written to"):
        require_place(tmp_path / "a.json", "--json")


def test_every_part_of_a_run_is_in_its_folder(tmp_path):
    assert RunFolder(tmp_path).lock.parent == tmp_path
