"""Time and memory of a step, in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from emorl.bench.records import quantiles
from emorl.memory import keep_memory


class Timing(NamedTuple):
    """Seconds and loss of a step that is its own clock, such as the mean of many calls."""

    seconds: float
    loss: float


Step = Callable[[], float]  # returns the loss, for which it has waited
TimedStep = Callable[[], Timing]
ALL_DIED = "every process died"  # instead of a table


class Worker:
    """A fresh process that runs steps on command, so that only they have used its memory.

    Ctrl-C is its owner's to answer: who leaves the context by an error ends the process at once.

    Args:
        build: makes the step, or several by their names, in that process: a top-level function,
            or a `partial` of one.
        threads: of PyTorch.
        keep: whether the process keeps its memory, as training on the CPU does.
        preload: a module that a server imports once, of which the process is then a fork: it
            starts in a moment. None for a process from the start, which alone can use a GPU.
    """

    def __init__(
        self,
        build: Callable[[], Step | Mapping[str, Step | TimedStep]],
        threads: int,
        keep: bool = True,
        preload: str | None = None,
    ) -> None:
        context: Any = multiprocessing.get_context("forkserver" if preload else "spawn")
        if preload:
            context.set_forkserver_preload([preload])
        self._pipe, other = context.Pipe()
        arguments = (other, build, threads, keep)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        other.close()  # a process that dies then ends our wait for its answer

    def step(self, name: str = "step") -> tuple[float, float]:
        """Seconds that a step took, and its loss; all steps draw the same noise."""
        self._pipe.send(name)
        answer: tuple[float, float] = self._pipe.recv()
        return answer

    def call(self, function: Callable[[], Any]) -> Any:
        """What a function returns in that process; top-level, or a `partial` of one."""
        self._pipe.send(function)
        return self._pipe.recv()

    def peak(self) -> int:
        """Bytes that the steps needed at most: on a GPU in all, on the CPU above their start."""
        self._pipe.send("peak")
        answer: int = self._pipe.recv()
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.terminate()
        with contextlib.suppress(ConnectionError):
            self._pipe.send("stop")
        self._process.join()


@contextlib.contextmanager
def left_out_if_dead(workers: dict[str, Worker], name: str) -> Iterator[None]:
    """Takes a worker out of `workers`, and says so, if its process dies meanwhile."""
    try:
        yield
    except (EOFError, ConnectionError):
        print(f"{name}: its process died", file=sys.stderr, flush=True)
        del workers[name]


def first_losses(workers: dict[str, Worker], steps: int) -> dict[str, float]:
    """The first loss of every worker; one that dies within so many steps is left out."""
    losses = {}
    for variant, worker in [*workers.items()]:
        with left_out_if_dead(workers, variant):
            losses[variant], *_ = [worker.step()[1] for _ in range(steps)]
    return losses


def in_turns(workers: dict[str, Worker], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds and peak bytes of workers that take turns, so that all see the same machine.

    Those that die are left out, also of `workers`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for name, worker in [*workers.items()]:
            with left_out_if_dead(workers, name):
                seconds[name].append(worker.step()[0])
    for name, worker in [*workers.items()]:
        with left_out_if_dead(workers, name):
            peaks[name] = worker.peak()
    return {
        name: {"seconds": quantiles(seconds[name]), "peak_bytes_above_start": peak}
        for name, peak in peaks.items()
    }


def _work(
    pipe: Connection,
    build: Callable[[], Step | Mapping[str, Step | TimedStep]],
    threads: int,
    keep: bool,
) -> None:
    """Main function of the process: build the steps, then obey the commands."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    if keep:
        keep_memory()
    built = build()
    steps = built if isinstance(built, Mapping) else {"step": built}
    start = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    while (command := pipe.recv()) != "stop":
        if callable(command):
            pipe.send(command())
        elif command in steps:
            torch.manual_seed(1)
            begin = time.perf_counter()
            done = steps[command]()
            seconds = time.perf_counter() - begin
            pipe.send(tuple(done) if isinstance(done, Timing) else (seconds, done))
        elif torch.cuda.is_initialized():
            pipe.send(torch.cuda.max_memory_allocated())
        else:
            pipe.send(_memory("VmHWM") - start)


def _memory(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
