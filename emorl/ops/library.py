"""Declaration of the operators, their gradients, and the choice of their backends.

Schemas, fake kernels and gradients are declared here, in Python. `emorl.ops.extension` adds the
kernels that it finds, so everything works without them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import register_autograd, register_fake

Backend = Literal["auto", "native", "triton", "reference"]
Function = TypeVar("Function", bound=Callable[..., Any])

NARROW = (torch.bfloat16, torch.float16)  # some kernels read them as they are; all compute wider
NO_SECOND_DERIVATIVE = "{}: no second derivative in compiled backends; use backend='reference'"
_BACKENDS = get_args(Backend)
_A100_SHARED_MEMORY = 163 * 1024  # bytes a block
# Why an operator has no kernel, by backend and device type; None where it has one. Plain data, so
# that torch.compile can trace `resolve`.
obstacles: dict[str, dict[str, dict[str, str | None]]] = {}
_told: list[str] = []  # why the reference runs, once that has been said


class OperatorLibrary(torch.library.Library):
    """A library of operators whose gradients refuse forward-mode derivatives.

    PyTorch would take results for constants wherever no gradient is recorded.
    """

    def impl(
        self, op_name: Any, fn: Callable[..., Any], dispatch_key: str = "", **options: Any
    ) -> None:
        """Register a kernel; the one of `register_autograd` looks for tangents first."""
        kernel = _without_tangents(op_name, fn) if dispatch_key == "Autograd" else fn
        super().impl(op_name, kernel, dispatch_key, **options)


def _without_tangents(op: str, differentiate: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that raises an error where an argument has a tangent."""

    def kernel(keys: Any, *arguments: Any, **options: Any) -> Any:
        if forward_ad._current_level >= 0 and any(map(_is_dual, arguments)):
            raise RuntimeError(
                f"emorl::{op}: no forward-mode derivatives; use emorl.ops with backend='reference'"
            )
        return differentiate(keys, *arguments, **options)

    return kernel


library = OperatorLibrary("emorl", "DEF")


class Gradient(NamedTuple):
    """What `torch.library.register_autograd` takes: what is kept, and what is made of it."""

    setup_context: Callable[[Any, tuple[Any, ...], Any], None]
    backward: Callable[..., tuple[Tensor | None, ...]]


def constant_when_compiled(function: Function) -> Function:
    """`torch.compiler.assume_constant_result` without importing the compiler, which takes long."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def gradient_by_names(op: str) -> Gradient:
    """Differentiate `emorl::<op>` by `emorl::<op>_backward`.

    The backward operator takes, by name, arguments and results of the operator, the gradients
    `grad_<result>`, and a list `wanted` of which gradients are; it returns every `grad_<argument>`.
    Results whose gradient it does not take are not differentiable.
    """
    forward, backward = (getattr(torch.ops.emorl, name).default for name in (op, f"{op}_backward"))
    arguments = [argument.name for argument in forward._schema.arguments]
    results = [result.name for result in forward._schema.returns]
    values = [*arguments, *results]
    taken = {x.name: "Tensor" in str(x.type) for x in backward._schema.arguments}
    # Places, found once: names at every call would take as long as a small kernel.
    tensors = [values.index(name) for name in taken if name in values and taken[name]]
    options = [values.index(name) for name in taken if name in values and not taken[name]]
    constant = [values.index(name) for name in results if f"grad_{name}" not in taken]
    at_hand = [*(values[i] for i in tensors + options), *(f"grad_{x}" for x in results), "wanted"]
    sources = [at_hand.index(name) for name in taken]
    returned = [x.name.removeprefix("grad_") for x in backward._schema.returns]
    differentiable = [arguments.index(name) for name in returned]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        values = (*inputs, *output) if isinstance(output, tuple) else (*inputs, output)
        ctx.save_for_backward(*[values[i] for i in tensors])
        ctx.options = [values[i] for i in options]
        if constant:
            ctx.mark_non_differentiable(*[values[i] for i in constant])
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None] * len(arguments)
        if any(grad is not None for grad in grads):
            refuse_tangents(op, grads)
            needed = ctx.needs_input_grad
            wanted = [needed[i] for i in differentiable]
            at_hand = (*ctx.saved_tensors, *ctx.options, *grads, wanted)
            made = backward(*[at_hand[i] for i in sources])
            for i, grad in zip(differentiable, made, strict=True):
                found[i] = grad if needed[i] else None
        return tuple(found)

    return Gradient(setup_context, gradient)


def define_op(
    name: str,
    *,
    schema: str,
    schema_backward: str,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    devices: Sequence[str] = ("cpu", "cuda"),
    triton: bool = True,
    gradient: Callable[[str], Gradient] = gradient_by_names,
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
        devices: Types of those that have kernels in C++ or CUDA; elsewhere `auto` takes the
            reference.
        triton: Whether there are Triton kernels.
        gradient: Gives the gradient of an operator, by its name.
    """

    def refuse(ctx: Any, *grads: Tensor | None) -> NoReturn:
        raise RuntimeError(NO_SECOND_DERIVATIVE.format(name.removesuffix("_triton")))

    for op in (name, f"{name}_triton") if triton else (name,):
        library.define(op + schema)
        library.define(f"{op}_backward{schema_backward}")
        register_fake(f"emorl::{op}", fake, lib=library)
        register_fake(f"emorl::{op}_backward", fake_backward, lib=library)
        setup_context, backward = gradient(op)
        register_autograd(f"emorl::{op}", backward, setup_context=setup_context, lib=library)
        register_autograd(f"emorl::{op}_backward", refuse, lib=library)
    unloaded = "the native extension has not been loaded"
    native: dict[str, str | None] = dict.fromkeys(devices, unloaded)
    obstacles[name] = {"native": native, **({"triton": {}} if triton else {})}


def resolve(
    name: str,
    backend: str,
    tensors: Sequence[Tensor | None],
    limits: Mapping[str, str | None] | None = None,
) -> str:
    """Backend that will run an operator.

    Args:
        name: The operator's name.
        backend: `auto` (native, else Triton on a GPU, else the reference, with one warning a
            process where the native kernels are missing), or the one that must run.
        tensors: The operator's arguments; the first one's device counts.
        limits: Why backends cannot run these arguments (a size beyond theirs), if they cannot.

    Returns:
        `native`, `triton` or `reference`.

    Raises:
        ValueError: If there is no such backend, or it cannot run on this device, or has not the
            derivative that is being taken.
    """
    if backend not in _BACKENDS:
        expected = ", ".join(_BACKENDS)
        raise ValueError(f"{name}: backend: expected one of {expected}, got {backend!r}")
    candidates = ("native", "triton", "reference") if backend == "auto" else (backend,)
    obstacle, first = None, tensors[0]
    assert first is not None
    derivative = None if backend == "reference" else derivative_obstacle(tensors)
    for candidate in candidates:
        obstacle = _obstacle(name, candidate, first.device) or (limits or {}).get(candidate)
        if candidate != "reference":
            obstacle = obstacle or derivative
        if obstacle is None and not (backend == "auto" and _is_interpreted(candidate, first)):
            missing = obstacles[name]["native"].get(first.device.type)
            if missing and (backend, candidate) == ("auto", "reference"):
                _warn_of_reference(missing)
            return candidate
    raise ValueError(f"{name}: backend {backend!r} cannot run: {obstacle}")


@constant_when_compiled
def _warn_of_reference(reason: str) -> None:
    """Tell once a process that native kernels are missing; in compiled code, when it is traced."""
    if not _told:
        _told.append(reason)
        warnings.warn(
            "emorl's operators run as plain PyTorch, with which a training step takes two to three "
            f"times as long: {reason}; `emorl info` lists what there is",
            stacklevel=2,
        )


def derivative_obstacle(tensors: Sequence[Tensor | None]) -> str | None:
    """Why plain PyTorch alone can differentiate what is computed from tensors, if so.

    Custom operators have a gradient of their own for `torch.autograd`, but no forward mode, where
    PyTorch would take their results for constants, and no rules for the transforms of `torch.func`.
    """
    if transformed():
        return "only backend='reference' has the derivatives of torch.func"
    forward = forward_ad._current_level >= 0  # read here, where a compiled graph takes note of it
    if forward and (torch.compiler.is_compiling() or any(map(_has_tangent, tensors))):
        return "only backend='reference' has forward-mode derivatives"
    return None


@constant_when_compiled  # of a graph: it is made anew for other transforms
def transformed() -> bool:
    """Whether a transform of `torch.func` differentiates."""
    return any(kind != torch._C._functorch.TransformType.Vmap for kind in _transforms())


@constant_when_compiled
def mapped() -> bool:
    """Whether `torch.vmap` maps."""
    return torch._C._functorch.TransformType.Vmap in _transforms()


def with_mapped(tensor: Tensor) -> Tensor:
    """The numbers of a tensor without derivatives, all of them also where `torch.vmap` maps it."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def _transforms() -> list[Any]:
    """The kinds of the transforms of `torch.func` that are under way, outer ones first."""
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is None:
        return []
    return [interpreter.key() for interpreter in functorch.get_interpreter_stack()]


def _is_dual(argument: Any) -> bool:
    return isinstance(argument, Tensor) and _has_tangent(argument)


def _has_tangent(tensor: Tensor | None) -> bool:
    return tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None


def refuse_tangents(name: str, grads: Sequence[Tensor | None]) -> None:
    """Raise where the gradients that come in have forward-mode derivatives."""
    if derivative_obstacle(grads) is not None:
        raise RuntimeError(NO_SECOND_DERIVATIVE.format(name.removesuffix("_triton")))


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, which takes its time even where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def recordable(tensor: Tensor) -> Tensor:
    """`tensor`, which autograd may record: copied if it is of the inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast does nothing on the device of `like`.

    For what computes with slots, positions and gradients: it costs little beside the networks over
    pixels, and bfloat16's 8 bits are too few for recurrent states, variances and divergences. A
    narrow tensor that comes from such a network is to be converted inside.
    """
    return torch.autocast(like.device.type, enabled=False) if autocasts(like) else nullcontext()


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for a tensor; never for one of the device `meta`, which has none."""
    device = tensor.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def on_gpu(tensor: Tensor) -> bool:
    """Whether the native kernels for a tensor are a GPU's; in tests/simt they always are."""
    return tensor.is_cuda


@constant_when_compiled
def shared_memory(device: torch.device) -> int:
    """Bytes that a block of threads can have; where there is no GPU, an A100's."""
    if device.type != "cuda":
        return _A100_SHARED_MEMORY
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin  # type: ignore[attr-defined]


def backends(device: torch.device | str = "cpu") -> dict[str, dict[str, str | None]]:
    """Which backends each operator has on a device.

    An operator that is for other devices alone is left out.

    Args:
        device: The device to ask for.

    Returns:
        For each operator and backend, None where it can run, else the reason why not.
    """
    device = torch.device(device)
    names = [name for name in _BACKENDS if name != "auto"]
    known = {kind for reasons in obstacles.values() for kind in reasons["native"]}
    return {
        op: {name: _obstacle(op, name, device) for name in names}
        for op, reasons in obstacles.items()
        if device.type in reasons["native"] or device.type not in known
    }


def _obstacle(name: str, backend: str, device: torch.device) -> str | None:
    if backend == "reference":
        return None
    if backend not in obstacles[name]:
        return f"it has no {backend} kernels"
    missing = f"no {backend} kernels for {device.type!r} devices exist"
    return obstacles[name][backend].get(device.type, missing)


def _is_interpreted(backend: str, tensor: Tensor) -> bool:
    """Triton's interpreter is for tests: nobody gets it without asking."""
    return backend == "triton" and tensor.device.type == "cpu"
