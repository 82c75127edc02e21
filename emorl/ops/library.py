"""Declaration of the operators and choice of their backends.

The schema and fake kernel of each operator are declared here in Python, and the gradients of the
Triton operators; the compiled extension `emorl._C` adds kernels and their gradients when it is
loaded, so everything works without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.library import register_fake

from emorl.ops.gradient import refuse_second_derivative, register_gradient

Backend = Literal["auto", "native", "triton", "reference"]

library = torch.library.Library("emorl", "DEF")

_BACKENDS = get_args(Backend)
_CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")  # ATen's names of x86-64's vectors, in order
_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_A100_SHARED_MEMORY = 163 * 1024  # bytes a block
_REBUILD = "rebuild with `pip install --no-build-isolation --no-deps .` in emorl's source"
# Why an operator has no kernel, by backend and device type; None where it has one. Plain data, so
# that torch.compile can trace `resolve`.
_obstacles: dict[str, dict[str, dict[str, str | None]]] = {}


def define_op(
    name: str,
    *,
    schema: str,
    schema_backward: str,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    triton: bool = True,
    gradient: Callable[[str, torch.library.Library], None] | None = None,
) -> None:
    """Declare `emorl::<name>`, for C++ and CUDA, and `emorl::<name>_triton`, with their gradients.

    Each has an operator `<...>_backward` of its own. `emorl.ops.triton.<name>` holds the Triton
    launchers `forward` and `backward`, whose arguments and results are the schemas'.

    Args:
        name: The operator's name.
        schema: Arguments and results of the forward operator.
        schema_backward: The same for the backward operator.
        fake: Gives the forward operator's results without data.
        fake_backward: Gives the backward operator's results without data.
        triton: Whether there are Triton kernels.
        gradient: Registers the gradient where it is not what the names in the schemas say.
    """
    for op in (name, f"{name}_triton") if triton else (name,):
        library.define(op + schema)
        library.define(f"{op}_backward{schema_backward}")
        register_fake(f"emorl::{op}", fake, lib=library)
        register_fake(f"emorl::{op}_backward", fake_backward, lib=library)
        is_native = op == name  # csrc/autograd.cpp registers these
        if gradient is not None:
            gradient(op, library)
        elif not is_native:
            register_gradient(op, library)
        if not is_native:
            refuse_second_derivative(op, name, library)
    _obstacles[name] = {"native": {}, **({"triton": {}} if triton else {})}


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
    for name, reasons in _obstacles.items():
        for device, key in _DISPATCH_KEYS.items():
            found = torch._C._dispatch_has_kernel_for_dispatch_key(f"emorl::{name}", key)
            missing = obstacle or f"the native extension was built without {key} kernels"
            reasons["native"][device] = None if found else missing


def _announce_triton() -> None:
    """Register launchers that import Triton when they are first called."""
    obstacle = None
    if importlib.util.find_spec("triton") is None:
        obstacle = "triton is not installed: pip install 'emorl[triton]'"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    on_cpu = None if interpreted else "Triton needs a GPU (or its interpreter, TRITON_INTERPRET=1)"
    for name, reasons in _obstacles.items():
        if "triton" not in reasons:
            continue
        reasons["triton"] = {"cpu": obstacle or on_cpu, "cuda": obstacle}
        for device, key in _DISPATCH_KEYS.items():
            if reasons["triton"][device] is None:
                for suffix, part in (("", "forward"), ("_backward", "backward")):
                    launcher = partial(_launch_triton, name, part)
                    library.impl(f"{name}_triton{suffix}", launcher, key)


def _launch_triton(name: str, part: str, *arguments: Any) -> Any:
    launcher = getattr(importlib.import_module(f"emorl.ops.triton.{name}"), part)
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
        return launcher(*arguments)


def build_record() -> dict[str, Any]:
    """What the installation noted about the native extension, empty where nothing was noted."""
    path = Path(__file__).resolve().parents[1] / "_build.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError:
        return {"native": False, "reason": f"{path} is damaged; {_REBUILD}"}
    return record


def resolve(
    name: str, backend: str, tensor: Tensor, limits: Mapping[str, str | None] | None = None
) -> str:
    """Backend that will run an operator.

    Args:
        name: The operator's name.
        backend: `auto` (native, else Triton on a GPU, else the reference), or the one that must
            run.
        tensor: An argument of the operator, for its device.
        limits: Why backends cannot run these arguments (a size beyond theirs), if they cannot.

    Returns:
        `native`, `triton` or `reference`.

    Raises:
        ValueError: If there is no such backend, or it cannot run on this device.
    """
    if backend not in _BACKENDS:
        expected = ", ".join(_BACKENDS)
        raise ValueError(f"{name}: backend: expected one of {expected}, got {backend!r}")
    candidates = ("native", "triton", "reference") if backend == "auto" else (backend,)
    obstacle = None
    for candidate in candidates:
        obstacle = _obstacle(name, candidate, tensor.device) or (limits or {}).get(candidate)
        if obstacle is None and not (backend == "auto" and _is_interpreted(candidate, tensor)):
            return candidate
    raise ValueError(f"{name}: backend {backend!r} cannot run: {obstacle}")


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, which takes its time even where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def usable(tensor: Tensor) -> Tensor:
    """`tensor` detached, which autograd may record; copied if it is of the inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast does nothing on the device of `like`.

    For what computes with slots, positions and gradients: it costs little beside the networks over
    pixels, and bfloat16's 8 bits are too few for recurrent states, variances and divergences. A
    narrow tensor that comes from such a network is to be converted inside.
    """
    device = like.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def on_gpu(tensor: Tensor) -> bool:
    """Whether the native kernels for a tensor are a GPU's; in tests/simt they always are."""
    return tensor.is_cuda


@torch.compiler.assume_constant_result
def shared_memory(device: torch.device) -> int:
    """Bytes that a block of threads can have; where there is no GPU, an A100's."""
    if device.type != "cuda":
        return _A100_SHARED_MEMORY
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin  # type: ignore[attr-defined]


def backends(device: torch.device | str = "cpu") -> dict[str, dict[str, str | None]]:
    """Which backends each operator has on a device.

    Args:
        device: The device to ask for.

    Returns:
        For each operator and backend, None where it can run, else the reason why not.
    """
    device = torch.device(device)
    names = [name for name in _BACKENDS if name != "auto"]
    return {op: {name: _obstacle(op, name, device) for name in names} for op in _obstacles}


def _obstacle(name: str, backend: str, device: torch.device) -> str | None:
    if backend == "reference":
        return None
    if backend not in _obstacles[name]:
        return f"it has no {backend} kernels"
    missing = f"no {backend} kernels for {device.type!r} devices exist"
    return _obstacles[name][backend].get(device.type, missing)


def _is_interpreted(backend: str, tensor: Tensor) -> bool:
    """Triton's interpreter is for tests: nobody gets it without asking."""
    return backend == "triton" and tensor.device.type == "cpu"


def _load_obstacle() -> str | None:
    record = build_record()
    if not record:
        return f"the native extension was never built; {_REBUILD}"
    if not record["native"]:
        return f"the native extension was not built: {record['reason']}"
    if record["torch"] != torch.__version__:
        return (
            f"the native extension was built for torch {record['torch']}, "
            f"this is torch {torch.__version__}; {_REBUILD}"
        )
    built, here = record["cpu"], torch.backends.cpu.get_cpu_capability()
    if built != "DEFAULT" and _CAPABILITIES.index(here) < _CAPABILITIES.index(built):
        return (
            f"the native extension was built for {built}, but this CPU or ATEN_CPU_CAPABILITY has "
            f"{here} alone"
        )
    return None
