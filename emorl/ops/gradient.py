"""The gradient of an operator, wired by the names in its schemas."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.library import Library, register_autograd


def register_gradient(op: str, library: Library) -> None:
    """Differentiate `emorl::<op>` by `emorl::<op>_backward`.

    The backward operator takes, by name, arguments and results of the operator, the gradients
    `grad_<result>`, and a list `wanted` of which gradients are; it returns every `grad_<argument>`.
    Results whose gradient it does not take are not differentiable.

    `csrc/autograd.cpp` does the same for the native operators.
    """
    forward, backward = (getattr(torch.ops.emorl, name).default for name in (op, f"{op}_backward"))
    arguments = [argument.name for argument in forward._schema.arguments]
    results = [result.name for result in forward._schema.returns]
    inputs_of_backward = {x.name: "Tensor" in str(x.type) for x in backward._schema.arguments}
    kept = [name for name in inputs_of_backward if name in (*arguments, *results)]
    tensors = [name for name in kept if inputs_of_backward[name]]
    options = [name for name in kept if not inputs_of_backward[name]]
    varying = [name for name in results if f"grad_{name}" in inputs_of_backward]
    differentiable = [result.name.removeprefix("grad_") for result in backward._schema.returns]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        values = dict(zip((*arguments, *results), (*inputs, *outputs), strict=True))
        ctx.save_for_backward(*(values[name] for name in tensors))
        ctx.options = {name: values[name] for name in options}
        ctx.mark_non_differentiable(*(values[x] for x in results if x not in varying))
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (None,) * len(arguments)
        needed = dict(zip(arguments, ctx.needs_input_grad, strict=True))
        values = {
            **dict(zip(tensors, ctx.saved_tensors, strict=True)),
            **ctx.options,
            **{f"grad_{name}": grads[results.index(name)] for name in varying},
        }
        found = backward(**values, wanted=[needed[name] for name in differentiable])
        by_name = dict(zip(differentiable, found, strict=True))
        return tuple(by_name[name] if needed[name] else None for name in arguments)

    register_autograd(f"emorl::{op}", gradient, setup_context=setup_context, lib=library)


def refuse_second_derivative(op: str, name: str, library: Library) -> None:
    """Say so, by the function's name, where the gradient of `emorl::<op>` is differentiated."""

    def refuse(ctx: Any, *grads: Tensor | None) -> NoReturn:
        raise RuntimeError(
            f"{name}: no second derivative in compiled backends; use backend='reference'"
        )

    register_autograd(f"emorl::{op}_backward", refuse, lib=library)
