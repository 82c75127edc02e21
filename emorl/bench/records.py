"""Records of benchmarks: quantiles of times, the machine, the file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import emorl
from emorl.runs.files import write_atomically

if TYPE_CHECKING:
    from emorl.bench.suite import Options


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 20 % and 80 % quantile."""
    low, median, high = np.quantile(seconds, [0.2, 0.5, 0.8]).tolist()
    return {"median": median, "p20": low, "p80": high}


def with_quantiles(entry: dict[str, Any]) -> dict[str, Any]:
    """A case of a record, with the quantiles of each part's timings."""
    parts = {name: {**part, **quantiles(part["seconds"])} for name, part in entry["parts"].items()}
    return {**entry, "parts": parts}


def header(suite: str, options: Options) -> dict[str, Any]:
    """What every record of a suite of `emorl bench` says beside its results."""
    return {
        "suite": suite,
        "emorl": emorl.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(options.threads),
        "device": options.device,
        "budget_seconds": options.budget,
    }


def machine(threads: int) -> dict[str, Any]:
    """Description of the machine for a record, without its host name."""
    on_gpu = torch.cuda.is_available()
    has_triton = importlib.util.find_spec("triton") is not None
    return {
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton") if has_triton else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
    }


def _processor() -> str:
    """The processor's model, as the system names it."""
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The git commit of this source, with "-dirty" if files were changed; None outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        done = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write(path: Path, content: object) -> None:
    """Write JSON atomically: an earlier record stays until then."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
