"""Slot attention's iterations as one operator: attention, a GRU and an MLP, again and again.

Shapes: B batch, K slots, N inputs of width C, D width of slots, Q of queries and E of updates, H
hidden width of the MLP, T iterations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from emorl.ops import library
from emorl.ops.arguments import (
    number,
    require_device,
    require_dtype,
    require_floating,
    require_tensors,
    whole_number,
)
from emorl.ops.library import Backend, define_op, resolve
from emorl.ops.slot_attention import reference as _attention

_OPTIONAL = ("query_bias", "key", "logit", "value")


class IterationWeights(NamedTuple):
    """The weights of `slot_iterations`.

    Attributes:
        norm_weight: of the slots' layer norm, [D].
        norm_bias: [D].
        query: from slots to queries, scaled, [Q, D].
        query_bias: [Q], or None for zeros.
        key: from inputs to keys, [Q, C]; or None where queries are of the inputs' width, Q = C.
        logit: what a normalised slot is multiplied by for its bias of the logits, [D], or None.
        value: from inputs to values, [E, C]; or None where updates are means of inputs, E = C.
        weight_ih: of the GRU for updates, [3D, E]: reset, keep, content, as in `nn.GRUCell`.
        weight_hh: for slots, [3D, D].
        bias_ih: [3D].
        bias_hh: [3D].
        mlp_norm_weight: of the layer norm before the MLP, [D].
        mlp_norm_bias: [D].
        weight_in: of the MLP's first layer, [H, D].
        bias_in: [H].
        weight_out: of its last, [D, H].
        bias_out: [D].
    """

    norm_weight: Tensor
    norm_bias: Tensor
    query: Tensor
    query_bias: Tensor | None
    key: Tensor | None
    logit: Tensor | None
    value: Tensor | None
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    mlp_norm_weight: Tensor
    mlp_norm_bias: Tensor
    weight_in: Tensor
    bias_in: Tensor
    weight_out: Tensor
    bias_out: Tensor


_WEIGHTS = len(IterationWeights._fields)


def slot_iterations(
    x: Tensor,
    slots: Tensor,
    weights: IterationWeights,
    *,
    iterations: int = 3,
    eps: float = 1e-8,
    norm_eps: float = 1e-5,
    mlp_norm_eps: float = 1e-5,
    backend: Backend = "auto",
) -> Tensor:
    """Let slots compete for inputs and move, T times over.

        n = LN(slots)
        q = key^T (query n + query_bias)
        update = value slot_attention(q, x, x, eps, logit_bias = logit . n)
        moved = GRU(update, slots)
        slots = moved + weight_out relu(weight_in LN(moved) + bias_in) + bias_out

    Equivalent to `reference`. The native kernels, of the CPU alone, call ATen's products and norms
    without autograd between them, and add the gradient of a weight up iteration by iteration; they
    keep 8 D + 2 C + Q + E + H numbers a slot and iteration (without `key` or
    `value`, no Q or E). The rounding is that of products and sums in another order.

    Args:
        x: [B, N, C], the keys and values of `slot_attention`.
        slots: initial ones, [B, K, D].
        weights: see `IterationWeights`.
        iterations: T, at least 1.
        eps: added to each attention weight.
        norm_eps: of the slots' layer norm.
        mlp_norm_eps: of the layer norm before the MLP.
        backend: `auto`, `native` or `reference`; `emorl.ops.backends()` tells which can run. On a
            GPU `auto` takes the reference.

    Returns:
        The slots after each iteration, [T, B, K, D]; NaN without inputs, N = 0.

    Raises:
        ValueError: If shapes, dtypes (float32 or float64, one for all) or devices do not fit, or
            the backend cannot run.

    Source: Locatello et al. 2020, "Object-Centric Learning with Slot Attention", Algorithm 1.
    """
    _check(x, slots, weights)
    iterations = whole_number("slot_iterations", "iterations", iterations, least=1)
    epsilons = [
        number("slot_iterations", name, value)
        for name, value in (("eps", eps), ("norm_eps", norm_eps), ("mlp_norm_eps", mlp_norm_eps))
    ]
    tensors = (x, slots, *weights)
    if resolve("slot_iterations", backend, tensors) == "reference":
        return reference(x, slots, weights, iterations, *epsilons)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    states: Tensor
    states, _ = torch.ops.emorl.slot_iterations.default(*tensors, *epsilons, iterations, keep)
    return states


def reference(
    x: Tensor,
    slots: Tensor,
    weights: IterationWeights,
    iterations: int = 3,
    eps: float = 1e-8,
    norm_eps: float = 1e-5,
    mlp_norm_eps: float = 1e-5,
) -> Tensor:
    """Plain PyTorch form of `slot_iterations`."""
    w, states = weights, []
    with library.full_precision(x):
        for _ in range(iterations):
            normed = F.layer_norm(slots, slots.shape[2:], w.norm_weight, w.norm_bias, norm_eps)
            query = F.linear(normed, w.query, w.query_bias)
            query = query if w.key is None else query @ w.key
            update, _ = _attention(
                query, x, x, None if w.logit is None else normed @ w.logit, None, eps
            )
            update = update if w.value is None else F.linear(update, w.value)
            moved = gru_cell(update, slots, w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh)
            normed = F.layer_norm(
                moved, moved.shape[2:], w.mlp_norm_weight, w.mlp_norm_bias, mlp_norm_eps
            )
            hidden = F.relu(F.linear(normed, w.weight_in, w.bias_in))
            slots = moved + F.linear(hidden, w.weight_out, w.bias_out)
            states.append(slots)
    return torch.stack(states)


def gru_cell(
    update: Tensor,
    state: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> Tensor:
    """The next state [..., D] of an `nn.GRUCell`, from an update [..., E] and a state [..., D].

    Under `torch.vmap` PyTorch's own cell fails where the update is mapped and the state is not.
    """
    of_update = F.linear(update, weight_ih, bias_ih).chunk(3, dim=-1)
    of_state = F.linear(state, weight_hh, bias_hh).chunk(3, dim=-1)
    reset, keep = (torch.sigmoid(x + h) for x, h in zip(of_update[:2], of_state[:2], strict=True))
    content = torch.tanh(of_update[2] + reset * of_state[2])
    return content + keep * (state - content)


def _check(x: Tensor, slots: Tensor, weights: IterationWeights) -> None:
    tensors = {"x": x, "slots": slots, **weights._asdict()}
    require_tensors("slot_iterations", tensors, _OPTIONAL)
    require_floating("slot_iterations", tensors, (torch.float32, torch.float64))
    w = weights
    if not (x.dim() == slots.dim() == 3 and w.query.dim() == w.weight_in.dim() == 2):
        got = [list(y.shape) for y in (x, slots, w.query, w.weight_in)]
        raise ValueError(
            "slot_iterations: expected x [B,N,C], slots [B,K,D], query [Q,D] and weight_in [H,D], "
            f"got {got[0]}, {got[1]}, {got[2]} and {got[3]}"
        )
    for name, shape in _shapes(x, slots, weights).items():
        tensor = tensors[name]
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"slot_iterations: {name}: expected {list(shape)}, got {list(tensor.shape)}"
            )
    require_dtype("slot_iterations", tensors, x.dtype)
    require_device("slot_iterations", tensors, x.device)


def _shapes(x: Tensor, slots: Tensor, w: IterationWeights) -> dict[str, tuple[int, ...]]:
    """The shape that each tensor has to have."""
    inputs, c = x.shape[1:]
    batch, d = slots.shape[0], slots.shape[2]
    q, hidden = w.query.shape[0], w.weight_in.shape[0]
    e = c if w.value is None else w.value.shape[0]
    return {
        "x": (batch, inputs, c),
        "norm_weight": (d,),
        "norm_bias": (d,),
        "query": (c if w.key is None else q, d),
        "query_bias": (q,),
        "key": (q, c),
        "logit": (d,),
        "value": (e, c),
        "weight_ih": (3 * d, e),
        "weight_hh": (3 * d, d),
        "bias_ih": (3 * d,),
        "bias_hh": (3 * d,),
        "mlp_norm_weight": (d,),
        "mlp_norm_bias": (d,),
        "weight_in": (hidden, d),
        "bias_in": (hidden,),
        "weight_out": (d, hidden),
        "bias_out": (d,),
    }


def _fake(x: Tensor, slots: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    weights, (iterations, keep) = IterationWeights(*others[:_WEIGHTS]), others[-2:]
    batch, count, d = slots.shape
    width = 8 * d + 2 * x.shape[2] + weights.weight_in.shape[0] + 6
    width += sum(y.shape[0] for y in (weights.key, weights.value) if y is not None)
    states = slots.new_empty(iterations, batch, count, d)
    return states, slots.new_empty((iterations if keep else 1) * batch * count * width)


def _fake_backward(grad_states: Tensor, *others: Any) -> tuple[Tensor, ...]:
    tensors, wanted = others[: 2 + _WEIGHTS], others[-1]
    return tuple(
        grad_states.new_empty(y.shape if want else 0)
        for y, want in zip(tensors, wanted, strict=True)
    )


_INPUTS = ", ".join(
    f"Tensor{'?' * (name in _OPTIONAL)} {name}"
    for name in ("x", "slots", *IterationWeights._fields)
)
_GRADIENTS = ", ".join(f"Tensor grad_{name}" for name in ("x", "slots", *IterationWeights._fields))

define_op(
    "slot_iterations",
    schema=f"({_INPUTS}, float eps, float norm_eps, float mlp_norm_eps, int iterations, "
    "bool keep) -> (Tensor states, Tensor kept)",
    schema_backward=f"(Tensor grad_states, {_INPUTS}, Tensor kept, float eps, "
    f"bool[{2 + _WEIGHTS}] wanted) -> ({_GRADIENTS})",
    fake=_fake,
    fake_backward=_fake_backward,
    devices=("cpu",),
    triton=False,
)
