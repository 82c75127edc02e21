"""Declaration of the operators and choice of their backends.

The schema, fake kernel and gradient of each operator are declared here in Python; the compiled
extension `emorl._C` adds kernels to them when it is loaded, so everything works without it.
"""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake

Backend = Literal["auto", "native", "reference"]

library = torch.library.Library("emorl", "DEF")

_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_REBUILD = "rebuild with `pip install --no-build-isolation --no-deps .` in emorl's source"
# Why an operator has no native kernel, by device type; None where it has one. Plain data, so that
# torch.compile can trace `resolve`.
_native: dict[str, dict[str, str | None]] = {}


def define_op(
    name: str,
    *,
    schema: str,
    schema_backward: str,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> None:
    """Declare `emorl::<name>` and `emorl::<name>_backward`.

    Args:
        name: The operator's name.
        schema: Arguments and results of the forward operator.
        schema_backward: The same for the backward operator.
        fake: Gives the forward operator's results without data.
        fake_backward: Gives the backward operator's results without data.
        setup_context: Saves what the gradient needs.
        backward: Computes the gradients: `backward(backward_op, ctx, *grad_outputs)`.
    """
    library.define(name + schema)
    library.define(f"{name}_backward{schema_backward}")
    register_fake(f"emorl::{name}", fake, lib=library)
    register_fake(f"emorl::{name}_backward", fake_backward, lib=library)
    backward_op = getattr(torch.ops.emorl, f"{name}_backward").default
    register_autograd(
        f"emorl::{name}", partial(backward, backward_op), setup_context=setup_context, lib=library
    )
    register_autograd(f"emorl::{name}_backward", partial(_no_double_backward, name), lib=library)
    _native[name] = {}


def load_native() -> None:
    """Load the extension, if it fits this process, and note which kernels it brought."""
    obstacle = _load_obstacle()
    if obstacle is None:
        try:
            importlib.import_module("emorl._C")
        except ImportError as error:
            obstacle = f"the native extension does not load: {error}; {_REBUILD}"
    for name, reasons in _native.items():
        for device, key in _DISPATCH_KEYS.items():
            found = torch._C._dispatch_has_kernel_for_dispatch_key(f"emorl::{name}", key)
            missing = obstacle or f"the native extension was built without {key} kernels"
            reasons[device] = None if found else missing


def build_record() -> dict[str, Any]:
    """What the installation noted about the native extension, empty where nothing was noted."""
    path = Path(__file__).resolve().parents[1] / "_build.json"
    return json.loads(path.read_text()) if path.exists() else {}


def resolve(name: str, backend: str, tensor: Tensor) -> str:
    """Backend that will run an operator.

    Args:
        name: The operator's name.
        backend: `auto`, or the backend that must run.
        tensor: An argument of the operator, for its device.

    Returns:
        `native` or `reference`.

    Raises:
        ValueError: If there is no such backend, or it cannot run on this device.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"{name}: backend: expected auto, native or reference, got {backend!r}")
    obstacle = _obstacle(name, "reference" if backend == "reference" else "native", tensor.device)
    if backend == "auto":
        return "reference" if obstacle else "native"
    if obstacle:
        raise ValueError(f"{name}: backend {backend!r} cannot run: {obstacle}")
    return backend


def backends(device: torch.device | str = "cpu") -> dict[str, dict[str, str | None]]:
    """Which backends each operator has on a device.

    Args:
        device: The device to ask for.

    Returns:
        For each operator and backend, None where it can run, else the reason why not.
    """
    device = torch.device(device)
    names = [name for name in get_args(Backend) if name != "auto"]
    return {op: {name: _obstacle(op, name, device) for name in names} for op in _native}


def _obstacle(name: str, backend: str, device: torch.device) -> str | None:
    if backend == "reference":
        return None
    return _native[name].get(device.type, f"no native kernels for {device.type!r} devices exist")


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
    x86 = platform.machine() in ("x86_64", "AMD64")
    if x86 and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return "the native extension needs AVX2, which this CPU or ATEN_CPU_CAPABILITY excludes"
    return None


def _no_double_backward(name: str, ctx: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError(
        f"{name}: no second derivative in the native backend; use backend='reference'"
    )
