"""The iterations of slot attention: attention, a recurrent update and an MLP, again and again.

`iterate` is the one implementation. It takes layers of any name, so the models, `emorl.nn`'s
`SlotAttention` and the classes of `emorl.compat` all call it.

Legend: B batch, K slots, N inputs (pixels, patches), C their width, D slot width, H heads, Q width
of queries and keys and E of values (all heads'), T iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn.arguments import require
from emorl.nn.fused_iterations import fused_iterations
from emorl.nn.networks import AbsorbedAttention, LinearFeatures, is_plain
from emorl.ops import Backend, slot_attention
from emorl.ops.library import mapped
from emorl.ops.slot_attention import SoftmaxOver
from emorl.ops.slot_iterations import gru_cell

Gradient = Literal["full", "implicit", "bilevel"]
KeepAttention = Literal["none", "last", "every"]
OWNER = "slot attention"
"""Whose arguments they are, in messages."""


class SlotIterations(NamedTuple):
    """Results of the iterations.

    Attributes:
        slots: after each iteration, [B, K, D].
        attention: the softmax, [B, K, N] or, with several heads, [B, K, H, N]: each iteration's or
            the last one's, if requested.
    """

    slots: list[Tensor]
    attention: list[Tensor]


class SlotLayers(NamedTuple):
    """The layers of slot attention, whatever their owner calls them.

    Attributes:
        query: from slots to queries, D to Q.
        key: from inputs to keys, C to Q.
        value: from inputs to values, C to E.
        norm_inputs: applied to the inputs once, or None.
        norm_slots: applied to the slots of each iteration, or None.
        gru: an `nn.GRUCell`; None adds the update to the slots.
        mlp: from slots to slots [B, K, D], its norm and residual included, as `ResidualMLP` has
            them; or None.
        combine: from the heads' updates, E, to the one of the slot; or None.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    norm_inputs: nn.Module | None
    norm_slots: nn.Module | None
    gru: nn.Module | None
    mlp: Callable[[Tensor], Tensor] | None
    combine: nn.Module | None = None


@dataclass(frozen=True, kw_only=True)
class SlotRules:
    """What slot attention computes with its layers.

    Attributes:
        scale: of the queries.
        heads: H.
        softmax_over: "slots", each head by itself, or "slots_heads", all slots and heads together.
        eps: see `eps_in`.
        eps_in: "weights", each of which it is added to, or "sum", the slot's sum of weights.
        update: "mean" divides by the sum of weights, "sum" does not.
        gru_state: "raw" or "normalised": the slots that the update moves, before or after
            `norm_slots`.
        masked_update: what slots that are masked get: "zero", or the "mean" of all values.
        gradient: "full"; "implicit", that of the last iteration alone, as at a fixed point (Chang
            et al. 2022), whose initial slots get none; "bilevel", of the last iteration, and what
            its slots get goes to the initial ones too (Jia et al. 2023).
        backend: of the op.
    """

    scale: float
    heads: int = 1
    softmax_over: SoftmaxOver = "slots"
    eps: float = 1e-8
    eps_in: Literal["weights", "sum"] = "weights"
    update: Literal["mean", "sum"] = "mean"
    gru_state: Literal["raw", "normalised"] = "raw"
    masked_update: Literal["zero", "mean"] = "zero"
    gradient: Gradient = "full"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        choices: dict[str, Any] = {
            "softmax_over": SoftmaxOver,
            "eps_in": Literal["weights", "sum"],
            "update": Literal["mean", "sum"],
            "gru_state": Literal["raw", "normalised"],
            "masked_update": Literal["zero", "mean"],
            "gradient": Gradient,
            "backend": Backend,
        }
        for name, allowed in choices.items():
            require_choice(name, getattr(self, name), allowed)
        require(OWNER, int, 1, heads=self.heads)
        require(OWNER, float, 0, eps=self.eps)
        require(OWNER, float, scale=self.scale)
        if self.masked_update == "mean" and not self.divides_by_weights:
            raise ValueError("slot attention: masked_update: a mean needs weights that add to one")

    @property
    def divides_by_weights(self) -> bool:
        """Whether the update is the mean that the op computes."""
        return (self.eps_in, self.update) == ("weights", "mean")


def require_choice(name: str, value: Any, allowed: Any) -> None:
    """Raise a ValueError unless `value` is one of a Literal's."""
    if value not in get_args(allowed):
        expected = ", ".join(get_args(allowed))
        raise ValueError(f"slot attention: {name}: expected one of {expected}, got {value!r}")


class DenseAttention(NamedTuple):
    """Attention over keys and values that have been made.

    With `extended` the op gives what it does not return, a slot's sum of weights: one more input,
    whose key is zero, gets the same weight from each slot. Of two more columns of each head's
    values one is 1 for inputs that count, the other for this one. Their means tell the rest.

    Attributes:
        keys: [B, N, Q].
        values: [B, N, E].
        extended: whether both have that row, and values the columns.
    """

    keys: Tensor
    values: Tensor
    extended: bool

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, rules: SlotRules, input_mask: Tensor | None) -> Self:
        """Attention as the rules need it; masked inputs do not count."""
        if input_mask is None and rules.divides_by_weights:
            return cls(keys, values, False)
        if input_mask is not None:
            keys, values = (x.masked_fill(~input_mask[..., None], 0) for x in (keys, values))
        by_head = values.unflatten(2, (rules.heads, -1))
        counted = torch.ones_like(by_head[..., :1])
        if input_mask is not None:
            counted = counted.masked_fill(~input_mask[..., None, None], 0)
        extended = F.pad(torch.cat([by_head, counted], dim=3), (0, 1, 0, 0, 0, 1))
        extended[:, -1, :, -1] = 1
        return cls(F.pad(keys, (0, 0, 0, 1)), extended.flatten(2), True)

    def attend(
        self, query: Tensor, rules: SlotRules, slot_mask: Tensor | None, want: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Updates [B, K, E] and, if wanted, the attention."""
        options: dict[str, Any] = {"slot_mask": slot_mask, "heads": rules.heads}
        options |= {"softmax_over": rules.softmax_over, "backend": rules.backend}
        options["eps"] = rules.eps if rules.eps_in == "weights" else 0.0
        options["return_attention"] = want
        result: Any = slot_attention(query, self.keys, self.values, **options)
        updates, attention = result if want else (result, None)
        if self.extended:
            updates = self._rest(updates.unflatten(2, (rules.heads, -1)), rules, slot_mask)
            attention = None if attention is None else attention[..., :-1]
        return updates, attention

    def _rest(self, means: Tensor, rules: SlotRules, slot_mask: Tensor | None) -> Tensor:
        """The update of means [B, K, H, E + 2]."""
        mean, counted, own = means[..., :-2], means[..., -2:-1], means[..., -1:]
        if slot_mask is not None:  # their means are 0, and stay so
            out = ~slot_mask[..., None, None]
            own, counted = own.masked_fill(out, 1), counted.masked_fill(out, 1)
        if rules.divides_by_weights:
            return (mean / counted).flatten(2)
        rivals: Any = means.shape[1]
        if slot_mask is not None:
            # where no slot takes part, every mean is 0, and a slot without rivals keeps it so
            rivals = slot_mask.sum(1).clamp(min=1).to(means.dtype)[:, None, None, None]
        if rules.softmax_over == "slots_heads":
            rivals = rivals * rules.heads
        eps_of_weight = rules.eps if rules.eps_in == "weights" else 0.0
        total = (1 / rivals + eps_of_weight) / own
        if rules.update == "sum":
            return (mean * total).flatten(2)
        return (mean * total / (counted * total + rules.eps)).flatten(2)

    def mean(self) -> Tensor:
        """The mean of all values, [B, E]."""
        return self.values.mean(dim=1)

    def logits(self, query: Tensor, heads: int) -> Tensor:
        """What the softmax is taken of, [B, K, H, N]."""
        keys = self.keys[:, :-1] if self.extended else self.keys
        by_head = (x.unflatten(2, (heads, -1)) for x in (query, keys))
        return torch.einsum("bkhd,bnhd->bkhn", *by_head)


def iterate(
    layers: SlotLayers,
    rules: SlotRules,
    features: Tensor | LinearFeatures,
    slots: Tensor,
    iterations: int,
    *,
    slot_mask: Tensor | None = None,
    input_mask: Tensor | None = None,
    keep_attention: KeepAttention = "none",
) -> SlotIterations:
    """Let slots compete for inputs, T times over.

    Args:
        layers: of an iteration.
        rules: how they are used.
        features: [B, N, C].
        slots: initial ones, [B, K, D].
        iterations: T.
        slot_mask: [B, K], bool, True where the slot takes part. Others get an update of 0.
        input_mask: [B, N], bool, True where the input counts. Others are in no slot's mean; at
            least one must count.
        keep_attention: "every" iteration's attention, which is not differentiable, or that of the
            "last" one, which is.

    Returns:
        Slots and attention; all slots but the last are detached unless the gradient is "full".

    Raises:
        ValueError: if there is not one iteration; if features are no tensor of three dimensions; if
            a mask is not bool or of another shape; on the CPU, outside compiled code,
            if no input of an image counts; or there is an `input_mask` and masked slots are to get
            the mean of all values.
    """
    _check_widths(layers, features, slots)
    if iterations < 1:
        raise ValueError(f"slot attention: iterations: expected at least 1, got {iterations}")
    _check_mask("slot_mask", slot_mask, slots.shape[:2])
    if input_mask is not None:
        _check_mask("input_mask", input_mask, (len(slots), input_mask.shape[-1]))
        if rules.masked_update == "mean":
            raise ValueError("slot attention: masked_update: a mean of all inputs knows no mask")
        _check_counted(input_mask)
    inputs = _attended(layers, rules, features, slots.shape[1] * iterations, input_mask)
    initial, states, maps = slots, [slots], []
    if isinstance(inputs, AbsorbedAttention) and rules.gradient == "full" and slot_mask is None:
        fused = {"none": iterations, "last": iterations - 1, "every": 0}[keep_attention]
        states += fused_iterations(layers, rules, inputs, slots, fused)
    for i in range(len(states) - 1, iterations):
        last = i == iterations - 1
        state, context = states[-1], nullcontext()
        if rules.gradient != "full":
            state = state.detach()
            if last and rules.gradient == "bilevel":
                state = state + (initial - initial.detach())
            context = torch.set_grad_enabled(torch.is_grad_enabled() and last)  # type: ignore
        want = keep_attention == "every" or (keep_attention == "last" and last)
        with context:
            differentiable = keep_attention == "last"
            moved, attention = _step(layers, rules, inputs, state, slot_mask, want, differentiable)
        states[-1] = slots if i == 0 else state
        states.append(moved)
        if attention is not None:
            out = None if input_mask is None else ~input_mask.view(len(slots), 1, -1)
            if out is not None:
                attention = attention.masked_fill(out if attention.dim() == 3 else out[:, None], 0)
            maps.append(attention)
    return SlotIterations(states[1:], maps)


def _check_widths(layers: SlotLayers, features: object, slots: Tensor) -> None:
    """Raise a ValueError for features or slots that the layers cannot take."""
    if not isinstance(features, LinearFeatures):
        require_inputs(features, getattr(layers.key, "in_features", "C"))
    _require_width("slots", "K", slots, getattr(layers.query, "in_features", "D"))


def require_inputs(given: object, width: object) -> None:
    """Raise a ValueError unless it is a tensor [B, N, width] of one input or more.

    A mean of none is no number. A width by name is any.
    """
    _require_width("inputs", "N", given, width)
    if isinstance(given, Tensor) and given.shape[1] == 0:
        raise ValueError(f"slot attention: inputs: expected at least one, got {[*given.shape]}")


def _require_width(name: str, count: str, given: object, width: object) -> None:
    shape = given.shape if isinstance(given, Tensor) else ()
    if len(shape) == 3 and (isinstance(width, str) or shape[2] == width):
        return
    got = [*given.shape] if isinstance(given, Tensor) else type(given).__name__
    raise ValueError(f"slot attention: {name}: expected a tensor [B, {count}, {width}], got {got}")


def _check_mask(name: str, mask: Tensor | None, shape: Sequence[int]) -> None:
    if mask is not None and (mask.dtype != torch.bool or mask.shape != torch.Size(shape)):
        raise ValueError(
            f"slot attention: {name}: expected bool {[*shape]}, got {mask.dtype} {[*mask.shape]}"
        )


def _check_counted(input_mask: Tensor) -> None:
    """Raise a ValueError for an image without inputs, where asking costs no wait for a device."""
    if input_mask.device.type != "cpu" or torch.compiler.is_compiling() or mapped():
        return
    empty = (~input_mask.any(dim=1)).nonzero()
    if len(empty):
        raise ValueError(
            "slot attention: input_mask: expected an input that counts in every image, got none "
            f"in image {int(empty[0])}"
        )


def _attended(
    layers: SlotLayers,
    rules: SlotRules,
    features: Tensor | LinearFeatures,
    queries: int,
    input_mask: Tensor | None,
) -> AbsorbedAttention | DenseAttention:
    """What slots attend to: with projections absorbed, or not where that takes longer."""
    norm = layers.norm_inputs
    if norm is not None:
        features = norm(features if isinstance(features, Tensor) else features.dense())
    heads_compete = rules.heads == 1 or rules.softmax_over == "slots_heads"
    exact = heads_compete and rules.divides_by_weights and input_mask is None
    if exact and (
        isinstance(features, LinearFeatures) or _absorbs(layers, rules, features, queries)
    ):
        return AbsorbedAttention.through(features, layers.key, layers.value)
    dense = features if isinstance(features, Tensor) else features.dense()
    return DenseAttention.of(layers.key(dense), layers.value(dense), rules, input_mask)


def _absorbs(layers: SlotLayers, rules: SlotRules, features: Tensor, queries: int) -> bool:
    """Whether absorbed projections are plain, and take fewer multiplications than dense ones.

    Those of an image: dense, both projections of N inputs, then Q a query, head and input;
    absorbed, both projections of the queries, then C a query, head and input.
    """
    key, value = layers.key, layers.value
    if not (is_plain(key, nn.Linear) and is_plain(value, nn.Linear)):
        return False
    inputs, channels = features.shape[1:]
    width = key.out_features
    dense = inputs * width * (channels + queries * rules.heads)
    return queries * channels * (width + inputs * rules.heads) < dense


def _step(
    layers: SlotLayers,
    rules: SlotRules,
    inputs: AbsorbedAttention | DenseAttention,
    slots: Tensor,
    slot_mask: Tensor | None,
    want: bool,
    differentiable: bool,
) -> tuple[Tensor, Tensor | None]:
    """One iteration: the slots after it and, if wanted, its attention."""
    normed = slots if layers.norm_slots is None else layers.norm_slots(slots)
    query = layers.query(normed) * rules.scale
    plain = want and differentiable and torch.is_grad_enabled()
    if isinstance(inputs, DenseAttention):
        update, attention = inputs.attend(query, rules, slot_mask, want and not plain)
    else:
        options: dict[str, Any] = {"eps": rules.eps, "slot_mask": slot_mask, "heads": rules.heads}
        update, attention = inputs.attend(query, want and not plain, rules.backend, **options)
    if plain:
        attention = _softmax(inputs.logits(query, rules.heads), rules, slot_mask)
    if slot_mask is not None and rules.masked_update == "mean":
        update = update.where(slot_mask[..., None], inputs.mean()[:, None])
    if layers.combine is not None:
        update = layers.combine(update)
    state = normed if rules.gru_state == "normalised" else slots
    moved = state + update if layers.gru is None else _recur(layers.gru, update, state)
    return moved if layers.mlp is None else layers.mlp(moved), attention


def _recur(gru: nn.Module, update: Tensor, state: Tensor) -> Tensor:
    """The cell's next state, [B, K, D]."""
    if not (mapped() and is_plain(gru, nn.GRUCell)):
        moved: Tensor = gru(update.flatten(0, 1), state.flatten(0, 1))
        return moved.view_as(state)
    return gru_cell(update, state, gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh)


def _softmax(logits: Tensor, rules: SlotRules, slot_mask: Tensor | None) -> Tensor:
    """The attention, [B, K, N] or [B, K, H, N], as plain PyTorch differentiates it."""
    if logits.dim() == 3:
        logits = logits.unflatten(1, (-1, rules.heads))  # [B, K, H, N]
    if slot_mask is not None:
        logits = logits.masked_fill(~slot_mask[:, :, None, None], torch.finfo(logits.dtype).min)
    if rules.softmax_over == "slots_heads":
        attention = logits.flatten(1, 2).softmax(1).view_as(logits)
    else:
        attention = logits.softmax(1)
    return attention[:, :, 0] if rules.heads == 1 else attention
