"""Slot attention's iterations by one operator, where their layers are plain.

Legend: B batch, K slots, N inputs, C their width, D slot width, Q width of queries, E of updates, T
iterations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from emorl.nn.networks import AbsorbedAttention, is_plain
from emorl.nn.residual_mlp import ResidualMLP, is_plain_norm
from emorl.ops import slot_iterations
from emorl.ops.library import autocasts, derivative_obstacle, mapped, obstacles
from emorl.ops.slot_iterations import IterationWeights

if TYPE_CHECKING:
    from emorl.nn.slot_iterations import SlotLayers, SlotRules

_IMAGES = 16  # of a usual batch; that its own size counts would change a module's rounding


def fused_iterations(
    layers: SlotLayers,
    rules: SlotRules,
    inputs: AbsorbedAttention,
    slots: Tensor,
    iterations: int,
) -> list[Tensor]:
    """What T iterations give by the operator `slot_iterations`, on a CPU.

    Args:
        layers: of an iteration.
        rules: how they are used; the gradient is the full one.
        inputs: what slots attend to.
        slots: initial ones, [B, K, D].
        iterations: T.

    Returns:
        Slots after each iteration, [B, K, D]; nothing where the operator cannot run, or does not
        compute all that these layers do.
    """
    if not (_may_run(rules, inputs, slots) and _are_plain(layers) and iterations > 0):
        return []
    weights = _weights(layers, rules, inputs, slots.shape[1] * iterations)
    if derivative_obstacle((inputs.hidden, slots, *weights)) is not None:
        return []
    refined: Any = layers.mlp
    norm: Any = layers.norm_slots
    states = slot_iterations(
        inputs.hidden,
        slots,
        weights,
        iterations=iterations,
        eps=rules.eps,
        norm_eps=norm.eps,
        mlp_norm_eps=refined.norm.eps,
        backend="native",
    )
    return [*states.unbind()]


def _may_run(rules: SlotRules, inputs: AbsorbedAttention, slots: Tensor) -> bool:
    """Whether the operator is for such tensors, and has its kernels."""
    return (
        rules.backend in ("auto", "native")
        and rules.heads == 1
        and rules.gru_state == "raw"
        and slots.device.type == "cpu"
        and slots.dtype in (torch.float32, torch.float64)
        and inputs.hidden.dtype == inputs.key.dtype == slots.dtype
        and obstacles["slot_iterations"]["native"].get("cpu", "") is None
        and not (autocasts(slots) or mapped())
    )


def _are_plain(layers: SlotLayers) -> bool:
    """Whether the layers compute with their weights alone, and are all that the operator has."""
    gru, mlp = layers.gru, layers.mlp
    return (
        is_plain(layers.query, nn.Linear)
        and is_plain_norm(layers.norm_slots)
        and gru is not None
        and is_plain(gru, nn.GRUCell)
        and gru.bias
        and layers.combine is None
        and isinstance(mlp, ResidualMLP)
        and mlp.is_plain()
    )


def _weights(
    layers: SlotLayers, rules: SlotRules, inputs: AbsorbedAttention, slots: int
) -> IterationWeights:
    """The operator's weights; two that act in a row are multiplied where that is less work.

    Args:
        layers: plain ones.
        rules: with the scale of the queries.
        inputs: with the weights of keys and values.
        slots: of an image, in all iterations.
    """
    query: Any = layers.query
    norm: Any = layers.norm_slots
    gru: Any = layers.gru
    refined: Any = layers.mlp
    mlp_norm, (first, _, last) = refined.norm, refined.mlp
    key: Tensor | None = inputs.key
    value: Tensor | None = inputs.value
    of_query, query_bias = query.weight * rules.scale, query.bias
    query_bias = None if query_bias is None else query_bias * rules.scale
    # what the query's bias adds to this is the same for all slots
    logit = None if inputs.key_bias is None else inputs.key_bias @ of_query
    weight_ih, bias_ih = gru.weight_ih, gru.bias_ih
    if inputs.value_bias is not None:
        bias_ih = torch.addmv(bias_ih, weight_ih, inputs.value_bias)
    if _is_less(slots, of_query.shape[1], *inputs.key.shape):
        query_bias = None if query_bias is None else query_bias @ inputs.key
        of_query, key = inputs.key.T @ of_query, None
    if _is_less(slots, inputs.value.shape[1], *weight_ih.T.shape):
        weight_ih, value = weight_ih @ inputs.value, None
    of_query_and_inputs = (of_query, query_bias, key, logit, value)
    of_gru = (weight_ih, gru.weight_hh, bias_ih, gru.bias_hh)
    of_mlp = (mlp_norm.weight, mlp_norm.bias, first.weight, first.bias, last.weight, last.bias)
    return IterationWeights(norm.weight, norm.bias, *of_query_and_inputs, *of_gru, *of_mlp)


def _is_less(slots: int, first: int, between: int, last: int) -> bool:
    """Whether a product of two matrices, from `first` to `last`, is less work than one by one."""
    rows = _IMAGES * slots
    return (rows + between) * first * last < rows * between * (first + last)
