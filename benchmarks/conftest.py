"""What each record of a benchmark says about the machine: never its name in a network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import torch


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    for private in ("node", "release"):
        machine_info.pop(private, None)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    if importlib.util.find_spec("triton"):
        machine_info["triton"] = importlib.metadata.version("triton")
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()
        machine_info["cuda"] = torch.version.cuda
