"""Records of benchmarks: quantiles of times, the machine, the file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emorl.runs.files import write_atomically


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 20 % and 80 % quantile."""
    low, median, high = np.quantile(seconds, [0.2, 0.5, 0.8]).tolist()
    return {"median": median, "p20": low, "p80": high}


def machine(threads: int) -> dict[str, Any]:
    """Description of the machine for a record, without its host name."""
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


def write(path: Path, content: object) -> None:
    """Write JSON atomically: an earlier record stays until then."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
