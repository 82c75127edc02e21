"""The compiled extension and the Triton kernels: finding them, and why they cannot run."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emorl.ops.library import library, obstacles

_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")  # ATen's names of x86-64's vectors, in order
_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_REBUILD = "rebuild with `pip install --no-build-isolation --no-deps .` in emorl's source"


def load_kernels() -> None:
    """Load the extension, if it fits this process, and announce the Triton kernels."""
    _load_native()
    _announce_triton()


def extension() -> Any | None:
    """The native extension, if it was loaded."""
    return sys.modules.get("emorl._C")


def _load_native() -> None:
    obstacle = _load_obstacle()
    if obstacle is None:
        try:
            importlib.import_module("emorl._C")
        except ImportError as error:
            obstacle = f"the native extension does not load: {error}; {_REBUILD}"
    for name, reasons in obstacles.items():
        for device in reasons["native"]:
            key = _DISPATCH_KEYS[device]
            found = torch._C._dispatch_has_kernel_for_dispatch_key(f"emorl::{name}", key)
            missing = obstacle or f"the native extension was built without {key} kernels"
            reasons["native"][device] = None if found else missing


def _announce_triton() -> None:
    """Register launchers that import Triton when they are first called."""
    obstacle = None
    if importlib.util.find_spec("triton") is None:
        obstacle = "triton is not installed: pip install 'emorl[triton]'"
    for name, reasons in obstacles.items():
        if "triton" not in reasons:
            continue
        reasons["triton"] = {"cpu": obstacle or _interpreter_obstacle(), "cuda": obstacle}
        for device, key in _DISPATCH_KEYS.items():
            if reasons["triton"][device] is None:
                for suffix, part in (("", "forward"), ("_backward", "backward")):
                    launcher = partial(_launch_triton, name, part)
                    library.impl(f"{name}_triton{suffix}", launcher, key)


def _interpreter_obstacle() -> str | None:
    """Why Triton, which is installed, cannot run on the CPU, where it is interpreted."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton needs a GPU (or its interpreter, TRITON_INTERPRET=1)"
    triton, numpy = map(importlib.metadata.version, ("triton", "numpy"))
    if triton.startswith("3.6.") and tuple(map(int, numpy.split(".")[:2])) >= (2, 5):
        return f"the interpreter of Triton {triton} needs NumPy before 2.5, this is {numpy}"
    return None


def _launch_triton(name: str, part: str, *arguments: Any) -> Any:
    launcher = getattr(importlib.import_module(f"emorl.ops.triton.{name}"), part)
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
        return launcher(*arguments)


def build_record() -> dict[str, Any]:
    """What the installation noted about the native extension, empty where nothing was noted."""
    path = Path(__file__).resolve().parents[1] / "_build.json"
    try:
        record: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        record = None
    if not _is_record(record):
        return {"native": False, "reason": f"{path} is damaged; {_REBUILD}"}
    return dict(record)


def _is_record(record: Any) -> bool:
    """Whether this is what setup.py notes."""
    if not isinstance(record, dict):
        return False
    if not record.get("native"):
        return "reason" in record
    return {"torch", "cuda"} <= record.keys() and record.get("cpu") in _CAPABILITIES


def _load_obstacle() -> str | None:
    record = build_record()
    if not record:
        return f"the native extension was never built; {_REBUILD}"
    if not record["native"]:
        return f"the native extension was not built: {record['reason']}; {_REBUILD}"
    if record["torch"] != torch.__version__:
        return (
            f"the native extension was built for torch {record['torch']}, "
            f"this is torch {torch.__version__}; {_REBUILD}"
        )
    built, here = record["cpu"], torch.backends.cpu.get_cpu_capability()
    if built != "DEFAULT" and _CAPABILITIES.index(here) < _CAPABILITIES.index(built):
        return (
            f"the native extension was built for {built}, but this CPU or ATEN_CPU_CAPABILITY has "
            f"{here} alone; {_REBUILD}"
        )
    return None
