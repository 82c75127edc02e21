"""A run's folder belongs to one training at a time."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import weakref
from pathlib import Path
from typing import IO

from emorl.runs.files import clean, remove_empty
from emorl.runs.folder import RunFolder, by_step, kind_of
from emorl.runs.trained import require_apart

_OWNER = re.compile(r"(process \d+\n?)?")
_LONGEST = 64  # characters that are read of what may be another's file


class RunLock:
    """Keeps other trainings out of a run's folder, which is made if needed.

    The system lets go of it when the process ends, however that happens. Where a file system knows
    no locks, nobody is kept out.

    Args:
        run: the run's folder.
        main: whether this is the main process of its run; the others rely on it and lock nothing.

    Raises:
        ValueError: if another training is under way there.
        OSError: if the folder cannot be made or written to.
    """

    def __init__(self, run: RunFolder, *, main: bool = True) -> None:
        self._run = run
        self._file: IO[str] | None = None
        self._made = [p for p in (run.path, *run.path.parents) if not p.exists()]
        if not main:
            return
        _require_no_file(run)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            self._is_new = is_unused(run)
            self._file = _locked(run)
        except BaseException:
            remove_empty(self._made)
            raise
        _held.add(self)

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            self._run.lock.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Let others in, and remove what a run left that ended before its first step.

        A folder that held something before stays as it is.
        """
        if self._file is not None and self._is_new:
            clean(self._run.path)
            self._run.config.unlink(missing_ok=True)
            self._run.data.unlink(missing_ok=True)
            self._run.metrics.unlink(missing_ok=True)
            shutil.rmtree(self._run.tensorboard, ignore_errors=True)
        self.release()
        remove_empty(self._made)

    def forget(self) -> None:
        """Close the file in a process that was forked, which else would keep the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None


def require_usable(run: RunFolder, *, resume: bool) -> None:
    """Refuse a folder that holds something else, or a run that is not to go on.

    Raises:
        ValueError: in one line.
    """
    require_apart(run.path, "--out")
    _require_no_file(run)
    if is_unused(run):
        return
    if not run.config.is_file():
        raise ValueError(f"--out: {run.path} is not empty and not a run's folder")
    if misplaced := run.misplaced():
        raise ValueError(f"--out: {misplaced}")
    if not resume:
        begun = bool(by_step(run.checkpoints))
        state = "a run; go on" if begun else "a run without a checkpoint; begin it again"
        raise ValueError(
            f"--out: {run.path} holds {state} with --resume auto or choose another --out"
        )


def _require_no_file(run: RunFolder) -> None:
    if os.path.lexists(run.path) and not run.path.is_dir():
        raise ValueError(f"{run.path}: expected a run's folder, got {kind_of(run.path)}")


def is_unused(run: RunFolder) -> bool:
    """Whether nothing is in the folder but what killed processes may leave."""
    return all(path.name.startswith(".") for path in run.path.glob("*"))


def _locked(run: RunFolder) -> IO[str]:
    while True:
        file = _opened(run.lock)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise ValueError(f"{run.path}: {owner} is training in this folder") from None
        except OSError:
            return file  # a file system without locks
        if _is_there(file, run):
            file.truncate(0)
            file.write(f"process {os.getpid()}\n")
            file.flush()
            return file
        file.close()  # whoever held it has removed it meanwhile


def _opened(lock: Path) -> IO[str]:
    """The lock's file, made if needed: neither what a link leads to nor another's file.

    Raises:
        ValueError: if something else has that name, which would be lost.
    """
    if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file()):
        raise ValueError(f"{lock}: expected the lock of a training, got {_kind_of(lock)}")
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.fdopen(os.open(lock, flags, 0o666), "a+", errors="replace")
    file.seek(0)
    if os.fstat(file.fileno()).st_nlink > 1 or not _OWNER.fullmatch(file.read(_LONGEST)):
        file.close()
        raise ValueError(f"{lock}: expected the lock of a training, got another file")
    return file


def _kind_of(lock: Path) -> str:
    return "a link" if lock.is_symlink() else kind_of(lock)


def _is_there(file: IO[str], run: RunFolder) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), run.lock.stat())
    except FileNotFoundError:
        return False


def _forget_all() -> None:
    for lock in _held:
        lock.forget()


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_all)
