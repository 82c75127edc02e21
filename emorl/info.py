"""Description of this installation: versions, threads, and each operator's backends."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys

import torch

import emorl
from emorl.ops import backends
from emorl.ops.extension import build_record, extension


def describe() -> str:
    """Text of `emorl info`, one fact a line, with the reason for each missing backend."""
    lines = [
        f"emorl      {emorl.__version__}",
        f"python     {platform.python_version()} ({sys.executable})",
        f"torch      {torch.__version__}, {_cuda()}",
        f"cpu        {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        f"extension  {_extension()}",
        f"triton     {_triton()}",
    ]
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for op, reasons in backends(device).items():
            for backend, reason in reasons.items():
                state = "yes" if reason is None else f"no: {reason}"
                lines.append(f"{op} / {backend} / {device}: {state}")
    return "\n".join(lines)


def _cuda() -> str:
    if torch.version.cuda is None:
        return "without CUDA"
    if not torch.cuda.is_available():
        return f"CUDA {torch.version.cuda}, no usable GPU"
    return f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}"


def _extension() -> str:
    native = extension()
    if native is None:
        return "not loaded (see below)"
    info = native.build_info()
    cuda = f"without CUDA ({build_record()['cuda']})"
    if info["cuda"]:
        cuda = f"with CUDA for {info['cuda_architectures']}"
    return f"for torch {info['torch']}, {cuda}, compiler {info['compiler']}, {info['flags']}"


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed (pip install 'emorl[triton]')"
    interpreted = " (interpreted)" if os.environ.get("TRITON_INTERPRET") == "1" else ""
    return importlib.metadata.version("triton") + interpreted


if __name__ == "__main__":
    print(describe())
