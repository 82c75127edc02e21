"""Processes for tests: torch is imported once, in a server, of which each process is a fork."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

processes = multiprocessing.get_context("forkserver")
# With what torch's optimisers import when they are made.
processes.set_forkserver_preload(["emorl.training.trainer", "torch._dynamo"])


def run_ranks(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run `work(*arguments)` in processes that find each other as torchrun's do; all succeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        processes.Process(target=_run_rank, args=(rank, world, port, work, arguments))
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * world


def _run_rank(
    rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    work(*arguments)
