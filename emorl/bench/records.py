"""What a record of a benchmark says: its times, and the machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 20 % and 80 % quantile."""
    low, median, high = np.quantile(seconds, [0.2, 0.5, 0.8]).tolist()
    return {"median": median, "p20": low, "p80": high}


def machine(threads: int) -> dict[str, Any]:
    """What a record says about the machine: never its name in a network."""
    on_gpu = torch.cuda.is_available()
    has_triton = importlib.util.find_spec("triton") is not None
    return {
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if has_triton else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
    }
