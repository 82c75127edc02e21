"""Time and memory of a step, in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import torch

from emorl.bench.records import quantiles
from emorl.memory import keep_memory

Step = Callable[[], float]  # returns the loss, for which it has waited
ALL_DIED = "every process died"  # instead of a table


class Worker:
    """A fresh process that runs steps on command, so that only they have used its memory.

    Args:
        build: makes the step, in that process: a top-level function, or a `partial` of one.
        threads: of PyTorch.
        keep: whether the process keeps its memory, as training on the CPU does.
    """

    def __init__(self, build: Callable[[], Step], threads: int, keep: bool = True) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        arguments = (other, build, threads, keep)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        other.close()  # a process that dies then ends our wait for its answer

    def step(self) -> tuple[float, float]:
        """Seconds that a step took, and its loss; all steps draw the same noise."""
        self._pipe.send("step")
        answer: tuple[float, float] = self._pipe.recv()
        return answer

    def peak(self) -> int:
        """Bytes that the steps needed at most: on a GPU in all, on the CPU above their start."""
        self._pipe.send("peak")
        answer: int = self._pipe.recv()
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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


def _work(pipe: Connection, build: Callable[[], Step], threads: int, keep: bool) -> None:
    """Main function of the process: build the step, then obey the commands."""
    torch.set_num_threads(threads)
    if keep:
        keep_memory()
    step = build()
    start = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    while (command := pipe.recv()) != "stop":
        if command == "step":
            torch.manual_seed(1)
            begin = time.perf_counter()
            loss = step()
            pipe.send((time.perf_counter() - begin, loss))
        elif torch.cuda.is_available():
            pipe.send(torch.cuda.max_memory_allocated())
        else:
            pipe.send(_memory("VmHWM") - start)


def _memory(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
