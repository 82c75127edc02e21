"""Two trainings in one folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from process_testing import processes

from emorl.runs import RunFolder
from emorl.runs.lock import RunLock


def hold(folder: Path, children: int = 0) -> None:
    """Take the folder and keep it; children are forked meanwhile, as data workers are."""
    lock = RunLock(RunFolder(folder))
    for _ in range(children):
        if os.fork() == 0:
            (folder / f"child-{os.getpid()}").touch()
            time.sleep(60)
            os._exit(0)
    (folder / "held").touch()
    time.sleep(60)
    lock.release()


def holder(folder: Path, **options):
    process = processes.Process(target=hold, args=(folder,), kwargs=options)
    process.start()
    while not (folder / "held").exists():
        process.join(0.01)
        assert process.is_alive()
    return process


def test_the_second_is_told_of_the_first(tmp_path):
    process = holder(tmp_path)
    message = f"{tmp_path}: process {process.pid} is training in this folder"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            RunLock(RunFolder(tmp_path))
    process.kill()
    process.join()
    RunLock(RunFolder(tmp_path)).release()
    assert not (tmp_path / ".lock").exists()


def test_a_killed_process_leaves_no_lock_even_if_its_workers_live(tmp_path):
    process = holder(tmp_path, children=2)
    while len(children := [*tmp_path.glob("child-*")]) < 2:
        time.sleep(0.01)
    process.kill()
    process.join()
    try:
        RunLock(RunFolder(tmp_path)).release()
    finally:
        for child in children:
            os.kill(int(child.name.removeprefix("child-")), signal.SIGKILL)


def test_one_process_takes_a_folder_once(tmp_path):
    first = RunLock(RunFolder(tmp_path))
    with pytest.raises(ValueError, match=f"process {os.getpid()} is training"):
        RunLock(RunFolder(tmp_path))
    first.release()
    RunLock(RunFolder(tmp_path)).release()


def test_a_lock_that_is_no_longer_used_is_let_go(tmp_path):
    RunLock(RunFolder(tmp_path))
    RunLock(RunFolder(tmp_path)).release()


def test_other_processes_of_a_run_rely_on_the_main_one(tmp_path):
    main = RunLock(RunFolder(tmp_path))
    RunLock(RunFolder(tmp_path), main=False).release()
    assert (tmp_path / ".lock").exists()
    main.release()


def test_who_waits_on_a_lock_that_is_removed_takes_the_new_one(tmp_path, monkeypatch):
    """The first has removed its file between the second's opening and locking it."""
    import fcntl

    first, plain = RunLock(RunFolder(tmp_path)), fcntl.flock

    def release_first(*arguments):
        first.release()
        plain(*arguments)

    monkeypatch.setattr(fcntl, "flock", release_first)
    second = RunLock(RunFolder(tmp_path))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is training in this folder"):
        RunLock(RunFolder(tmp_path))
    second.release()


def test_discarding_leaves_nothing_new(tmp_path):
    run = RunFolder(tmp_path / "a/b")
    lock = RunLock(run)
    run.config.touch()
    run.tensorboard.mkdir()
    lock.discard()
    assert not [*tmp_path.iterdir()]


def test_discarding_keeps_what_was_there(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/events").touch()
    (tmp_path / "config.yaml").touch()
    lock = RunLock(RunFolder(tmp_path))
    lock.discard()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "tensorboard"]
    assert (tmp_path / "tensorboard/events").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a run's folder, got a file"):
        RunLock(RunFolder(tmp_path / "file"))


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    import fcntl

    def refuse(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    RunLock(RunFolder(tmp_path)).release()


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "hard link", "folder", "pipe"])
def test_what_is_no_lock_is_left_alone(tmp_path, kind):
    """A link's target was emptied, and the link removed."""
    mine, lock = tmp_path / "mine.txt", tmp_path / "run/.lock"
    lock.parent.mkdir()
    mine.write_text("" if kind == "hard link" else "thesis")
    if kind == "link":
        lock.symlink_to(mine)
    elif kind == "dangling link":
        lock.symlink_to(tmp_path / "none")
    elif kind == "file":
        lock.write_text("thesis")
    elif kind == "hard link":
        lock.hardlink_to(mine)
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    before = mine.read_bytes(), os.lstat(lock)[:3], os.lstat(lock).st_size
    with pytest.raises(ValueError, match=r"\.lock: expected the lock of a training, got a"):
        RunLock(RunFolder(lock.parent))
    assert (mine.read_bytes(), os.lstat(lock)[:3], os.lstat(lock).st_size) == before
    assert not (tmp_path / "none").exists()


def test_a_lock_that_a_killed_process_left_is_taken(tmp_path):
    (tmp_path / ".lock").write_text("process 12345678\n")
    lock = RunLock(RunFolder(tmp_path))
    assert (tmp_path / ".lock").read_text() == f"process {os.getpid()}\n"
    lock.release()
    assert not (tmp_path / ".lock").exists()
