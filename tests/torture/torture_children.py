"""Commands in processes that can be stopped at any moment; each is a fork of a warm server."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from process_testing import processes

from emorl.cli import main

# All that the commands import, so that a child begins at once.
processes.set_forkserver_preload(
    [
        *("torch._dynamo", "emorl.training.run", "emorl.training.config_file", "emorl.report"),
        *("emorl.evaluation", "emorl.cli.train", "emorl.cli.evaluate", "emorl.cli.report"),
        *("h5py", "jsonargparse", "torch.distributed", "torch.utils.tensorboard"),
    ]
)
LONGEST = 240.0  # seconds that a child may take before it counts as stuck
WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
OUTPUTS = {"stdout": 1, "stderr": 2}  # file in the child's folder -> descriptor


class Fault(Exception):  # noqa: N818
    """Something that is promised did not hold."""


@dataclass(frozen=True)
class Child:
    """What is done to a command while it runs.

    Attributes:
        folder: Where its output goes; in its subfolder `run` file events count.
        arguments: Of `emorl`.
        event: Number of the file event at which it sends `number` to itself; 0 for none.
        number: That signal.
        part: Of the run's folder, whose file events alone count.
        room: Bytes that a file may have at most; 0 for no limit.
        environment: Variables beside those of this process.
    """

    folder: Path
    arguments: list[str]
    event: int = 0
    number: int = signal.SIGKILL
    part: str = ""
    room: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> Started:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in OUTPUTS:
            (self.folder / name).touch()  # it may be killed before it has opened them
        process = processes.Process(target=run, args=(self,))
        process.start()
        return Started(process, self.folder)


@dataclass(frozen=True)
class Started:
    """A child, in a process group of its own."""

    process: Any
    folder: Path

    def signal(self, number: int, after: float, group: bool) -> None:
        """Send a signal if the child still runs after some seconds, to its workers as well."""
        self.process.join(after)
        if self.process.exitcode is None:
            is_leader = os.getpgid(self.process.pid) == self.process.pid  # not before `setsid`
            (os.killpg if group and is_leader else os.kill)(self.process.pid, number)

    def end(self) -> int:
        """Wait for it, and for what it started.

        Returns:
            The exit code, negative for the signal that ended it.

        Raises:
            Fault: if it is stuck, leaves a process, or ends with a traceback.
        """
        self.process.join(LONGEST)
        if self.process.exitcode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise Fault(f"stuck for {LONGEST:.0f} s: {self.last_line}")
        deadline = time.monotonic() + 30
        while left := [*members(self.process.pid)]:
            if time.monotonic() > deadline:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise Fault(f"processes left: {left}")
            time.sleep(0.05)
        if "Traceback" in self.stderr:
            where = self.stderr.partition("Traceback")[2][-400:]
            raise Fault(f"exit code {self.process.exitcode}, a traceback: {where}")
        return int(self.process.exitcode)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    @property
    def last_line(self) -> str:
        return next(iter(self.stderr.splitlines()[-1:]), "nothing on stderr")

    @property
    def events(self) -> int:
        """How many file events there were; known of a child that was not killed."""
        return int((self.folder / "events").read_text())


def run(child: Child) -> None:
    """In the child: run the command; its exit code is the process's."""
    os.setsid()
    for name, descriptor in OUTPUTS.items():
        with (child.folder / name).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    os.environ.update(child.environment)
    if child.room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (child.room, child.room))
    count = _count_events(child)
    code = main(child.arguments)
    (child.folder / "events").write_text(str(count[0]))
    raise SystemExit(code)


def _count_events(child: Child) -> list[int]:
    """Count what this process does to files, and signal at one of these events."""
    count, here, process = [0], str(child.folder / "run" / child.part), os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED and str(arguments[0]).startswith(here) and os.getpid() == process:
            count[0] += 1
            if count[0] == child.event:
                os.kill(process, child.number)

    sys.addaudithook(hook)
    return count


def members(group: int) -> Iterator[int]:
    """The living processes of a process group."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(process_group) == group and state not in "ZX":
            yield int(stat.parent.name)
