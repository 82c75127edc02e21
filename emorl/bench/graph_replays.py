"""Times of GPU work without launch overhead: CUDA events around replays of a graph.

A single call takes microseconds, a Python call as long: so several calls are captured in one graph,
each on inputs of its own, and the replay is timed. What they move together does not fit in the
cache, so that none finds its inputs there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

COLD = 4  # times the cache that the calls fill together
FEWEST, MOST = 4, 64  # calls in a graph


def calls_of(moved: int, cache: int) -> int:
    """How many calls, of `moved` bytes each, make a cache of `cache` bytes useless."""
    return min(MOST, max(FEWEST, -(-COLD * cache // max(1, moved))))


def cache_bytes() -> int:
    """The GPU's second-level cache."""
    size: int = torch.cuda.get_device_properties().L2_cache_size
    return size


class Replays:
    """One graph of several calls; each `round` replays it, and notes the seconds of a call.

    Args:
        calls: the same work on one set of inputs each; they may not wait for the device.
    """

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self.seconds: list[float] = []
        self._calls = len(calls)
        self._graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their kernels before a capture
            for call in calls[:2]:
                call()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self._graph):
            for call in calls:
                call()

    def round(self) -> None:
        """Replay once and wait."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self._graph.replay()
        end.record()
        end.synchronize()
        self.seconds.append(begin.elapsed_time(end) / 1e3 / self._calls)
