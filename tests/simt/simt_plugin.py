"""A pytest plugin for a process whose native operators are CUDA kernels on the CPU.

Each test gets an order of threads and a number of multiprocessors by its name;
SIMT_ORDER=forward|backward|random and SIMT_MULTIPROCESSORS=n choose them for all.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ORDERS = ("forward", "backward", "random")
MULTIPROCESSORS = (1, 5, 7, 132)
# Tests of what the CPU's kernels alone promise.
OF_THE_CPU = ("test_native_allocates_nothing_of_the_attention_s_size",)


def library() -> ctypes.CDLL:
    """The kernels of the simulator whose emorl is imported."""
    import emorl

    kernels = ctypes.CDLL(str(Path(emorl.__file__).parent / "libemorl_simt.so"))
    kernels.simt_launches.restype = ctypes.c_int64
    return kernels


def chosen_for(name: str) -> tuple[str, int, int]:
    """Order, seed and multiprocessors for a test of this name."""
    seed = zlib.crc32(name.encode())
    order = os.environ.get("SIMT_ORDER") or ORDERS[seed % len(ORDERS)]
    processors = MULTIPROCESSORS[seed // len(ORDERS) % len(MULTIPROCESSORS)]
    return order, seed, int(os.environ.get("SIMT_MULTIPROCESSORS") or processors)


def pytest_configure() -> None:
    """Sizes that the operators refuse on a GPU are refused here as well."""
    importlib.import_module("emorl.ops.library").on_gpu = lambda tensor: True


def pytest_report_header() -> str:
    return "simt: the native operators are the CUDA kernels, on the CPU"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only what runs native kernels stays."""
    chosen = [x for x in items if "native" in x.name and x.originalname not in OF_THE_CPU]
    config.hook.pytest_deselected(items=[x for x in items if x not in chosen])
    items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    order, seed, processors = chosen_for(item.nodeid)
    library().simt_configure(ORDERS.index(order), seed, processors)
    item.add_report_section("call", "simt", f"{order} order, {processors} multiprocessors")
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"simt: {library().simt_launches()} launches")
