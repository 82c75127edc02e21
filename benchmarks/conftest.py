"""What each record of a benchmark says about the machine, and records that come one by one.

pytest-benchmark writes its JSON at the end; `--json-lines FILE` adds a line after each case, which
stay when a time limit ends the run. No record names the machine in a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from emorl.bench import kernels
from emorl.bench.records import machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--json-lines", type=Path, help="a line of JSON there after each case")
    parser.addoption(kernels.OPTION, action="store_true", help=kernels.HELP)


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    try:
        kernels.require(config.getoption(kernels.OPTION) or config.option.collectonly)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(autouse=True)
def record_at_once(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[None]:
    """Add the case's record to the file of `--json-lines`."""
    yield
    file = request.config.getoption("json_lines")
    if file and benchmark.extra_info:
        record = {"name": request.node.name, "group": benchmark.group, **benchmark.extra_info}
        with file.open("a") as lines:
            lines.write(json.dumps(record) + "\n")


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    for private in ("node", "release"):
        machine_info.pop(private, None)
    machine_info.update(machine(torch.get_num_threads()))
