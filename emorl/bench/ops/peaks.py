"""The most that a machine can do, measured: bytes a second, and operations a second by dtype."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from emorl.bench.graph_replays import Replays
from emorl.bench.ops.cases import name_of

ROUNDS = 5
COPIED = 2**25  # numbers
SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices


def peaks(device: str, dtypes: Sequence[torch.dtype]) -> dict[str, Any]:
    """Of a large copy, which reads and writes, and of a product of square matrices."""
    return {
        "bytes_per_second": copy_bandwidth(device),
        "operations_per_second": {name_of(dtype): _product(device, dtype) for dtype in dtypes},
    }


def copy_bandwidth(device: str) -> float:
    """Bytes per second that a large copy reads and writes together."""
    source = torch.ones(COPIED, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _quickest(device, lambda: target.copy_(source))


def _product(device: str, dtype: torch.dtype) -> float:
    side = SIDES[device]
    one = torch.ones(side, side, device=device, dtype=dtype)
    product = torch.empty_like(one)
    return 2 * side**3 / _quickest(device, lambda: torch.mm(one, one, out=product))


def _quickest(device: str, work: Callable[[], object]) -> float:
    """Seconds of the quickest call, after one that warms up."""
    if device == "cuda":
        replays = Replays([work] * 4)
        for _ in range(ROUNDS):
            replays.round()
        return min(replays.seconds[1:])
    return min([_seconds(work) for _ in range(1 + ROUNDS)][1:])


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
