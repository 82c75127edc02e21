"""Slot attention as a module, in all its variants; `emorl.nn.slot_iterations` computes it.

Legend: B batch, K slots, N inputs (pixels, patches), C their width, D slot width, H heads, Q width
of queries, keys and values (all heads'), T iterations.
"""

from __future__ import annotations

from typing import Literal, cast, overload

import torch
from torch import Tensor, nn

from emorl.fields import shown
from emorl.nn.arguments import require
from emorl.nn.initial_slots import LearnedSlots, SampledSlots
from emorl.nn.initialisation import init_xavier
from emorl.nn.residual_mlp import ResidualMLP
from emorl.nn.slot_iterations import (
    OWNER,
    Gradient,
    SlotLayers,
    SlotRules,
    iterate,
    require_choice,
)
from emorl.ops import Backend
from emorl.ops.arguments import require_flag, whole_number
from emorl.ops.library import autocasts
from emorl.ops.slot_attention import SoftmaxOver

InitialSlots = Literal["sampled", "learned", "given"]


class SlotAttentionLayers(nn.Module):
    """Slot attention's layers under the names that checkpoints know, and what they compute.

    Args:
        dim: D.
        input_dim: C; None for D.
        projected: width of queries, keys and values; None for D.
        hidden: width of the MLP's hidden layer; None for no MLP.
        bias: whether queries, keys and values have biases.
        norm_inputs: whether inputs are normalised before keys and values.
        norm_slots: whether slots are normalised before queries.
        norm_eps: of the layer norms.
        recurrent: update slots by a GRU; else the update is added to them.
        combine_heads: map the heads' updates to D by one more layer.
        gain: of the initial weights (Xavier normal) of projections and MLP; the GRU keeps
            PyTorch's initialisation.
        rules: what is computed with these layers.
    """

    def __init__(
        self,
        *,
        dim: int,
        rules: SlotRules,
        input_dim: int | None = None,
        projected: int | None = None,
        hidden: int | None = 128,
        bias: bool = False,
        norm_inputs: bool = True,
        norm_slots: bool = True,
        norm_eps: float = 1e-5,
        recurrent: bool = True,
        combine_heads: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        require(OWNER, int, 1, dim=dim)
        require(OWNER, int | None, 1, input_dim=input_dim, projected=projected, hidden=hidden)
        require(OWNER, float, 0, norm_eps=norm_eps, gain=gain)
        _require_flags(
            bias=bias,
            norm_inputs=norm_inputs,
            norm_slots=norm_slots,
            recurrent=recurrent,
            combine_heads=combine_heads,
        )
        channels, width = input_dim or dim, projected or dim
        self.dim, self.input_dim, self.rules = dim, channels, rules
        self.query = nn.Linear(dim, width, bias=bias)
        self.key = nn.Linear(channels, width, bias=bias)
        self.value = nn.Linear(channels, width, bias=bias)
        self.mlp = None
        if hidden is not None:
            self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.combine = nn.Linear(width, dim) if combine_heads else None
        init_xavier(self, gain)
        self.norm_inputs = nn.LayerNorm(channels, eps=norm_eps) if norm_inputs else None
        self.norm_slots = nn.LayerNorm(dim, eps=norm_eps) if norm_slots else None
        self.norm_mlp = nn.LayerNorm(dim, eps=norm_eps) if hidden is not None else None
        self.gru = nn.GRUCell(dim if combine_heads else width, dim) if recurrent else None

    def layers(self) -> SlotLayers:
        """The layers as `iterate` takes them."""
        return SlotLayers(
            query=self.query,
            key=self.key,
            value=self.value,
            norm_inputs=self.norm_inputs,
            norm_slots=self.norm_slots,
            gru=self.gru,
            mlp=None if self.mlp is None else ResidualMLP(cast(nn.Module, self.norm_mlp), self.mlp),
            combine=self.combine,
        )


class SlotAttention(SlotAttentionLayers):
    """Slots that compete for inputs, T times over (Locatello et al. 2020), in all its variants.

        update = mean of W_v x over inputs, weighted by the softmax over slots of
                 (W_q LN(slots)) . (W_k x) / sqrt(Q),                             x = LN(inputs)
        slots = GRU(update, slots)
        slots = slots + MLP(LN(slots))

    The attention is one fused operator, `emorl.ops.slot_attention`; where that takes fewer
    multiplications, W_k and W_v act on the few slots and keys and values are never made. With
    `eps_in="sum"`, `update="sum"`, an `input_mask`, or heads with a softmax each, they are.
    A second derivative, forward mode and `torch.func` need `backend="reference"`, which `auto`
    takes for the last two.

    Args:
        dim: D, width of a slot.
        num_slots: K; None if every call gives slots.
        input_dim: C, width of the inputs; None for D.
        iterations: T.
        hidden: width of the MLP's hidden layer; None for no MLP.
        heads: H.
        projected: Q, width of queries, keys and values, all heads'; None for D.
        combine_heads: map the heads' updates to D by one more layer.
        bias: whether queries, keys and values have biases.
        softmax_over: "slots" or "slots_heads"; as all down to `gradient`, see `SlotRules`.
        scale: of the queries; None for (Q / H) ** -0.5.
        eps: see `SlotRules`.
        eps_in: "weights" or "sum".
        update: "mean" or "sum".
        gru_state: "raw" or "normalised".
        gradient: "full", "implicit" or "bilevel".
        norm_inputs: whether inputs are normalised before keys and values.
        norm_slots: whether slots are normalised before queries.
        norm_eps: of the layer norms.
        recurrent: update slots by a GRU; else the update is added to them.
        initial_slots: "sampled" from one learned Gaussian, "learned", one vector a slot, or
            "given" at every call.
        gain: of the initial weights (Xavier normal) of projections and MLP.
        backend: of the op.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_slots: int | None = None,
        input_dim: int | None = None,
        iterations: int = 3,
        hidden: int | None = 128,
        heads: int = 1,
        projected: int | None = None,
        combine_heads: bool = False,
        bias: bool = False,
        softmax_over: SoftmaxOver = "slots",
        scale: float | None = None,
        eps: float = 1e-8,
        eps_in: Literal["weights", "sum"] = "weights",
        update: Literal["mean", "sum"] = "mean",
        gru_state: Literal["raw", "normalised"] = "raw",
        gradient: Gradient = "full",
        norm_inputs: bool = True,
        norm_slots: bool = True,
        norm_eps: float = 1e-5,
        recurrent: bool = True,
        initial_slots: InitialSlots = "sampled",
        gain: float = 1.0,
        backend: Backend = "auto",
    ) -> None:
        require(OWNER, int, 1, dim=dim, iterations=iterations, heads=heads)
        require(OWNER, int | None, 1, projected=projected, num_slots=num_slots)
        _require_flags(recurrent=recurrent, combine_heads=combine_heads)
        width = projected or dim
        _check(dim, width, heads, num_slots, initial_slots, recurrent or combine_heads)
        rules = SlotRules(
            scale=(width // heads) ** -0.5 if scale is None else scale,
            heads=heads,
            softmax_over=softmax_over,
            eps=eps,
            eps_in=eps_in,
            update=update,
            gru_state=gru_state,
            gradient=gradient,
            backend=backend,
        )
        super().__init__(
            dim=dim,
            rules=rules,
            input_dim=input_dim,
            projected=projected,
            hidden=hidden,
            bias=bias,
            norm_inputs=norm_inputs,
            norm_slots=norm_slots,
            norm_eps=norm_eps,
            recurrent=recurrent,
            combine_heads=combine_heads,
            gain=gain,
        )
        self.num_slots, self.iterations = num_slots, iterations
        self.initial: SampledSlots | LearnedSlots | None = None
        if initial_slots == "sampled":
            self.initial = SampledSlots(dim)
        elif initial_slots == "learned":
            assert num_slots is not None
            self.initial = LearnedSlots(num_slots, dim)

    @overload
    def forward(
        self,
        inputs: Tensor,
        slots: Tensor | None = ...,
        *,
        num_slots: int | None = ...,
        iterations: int | None = ...,
        slot_mask: Tensor | None = ...,
        input_mask: Tensor | None = ...,
        return_attention: Literal[False] = ...,
        generator: torch.Generator | None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        inputs: Tensor,
        slots: Tensor | None = ...,
        *,
        num_slots: int | None = ...,
        iterations: int | None = ...,
        slot_mask: Tensor | None = ...,
        input_mask: Tensor | None = ...,
        return_attention: Literal[True],
        generator: torch.Generator | None = ...,
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self,
        inputs: Tensor,
        slots: Tensor | None = None,
        *,
        num_slots: int | None = None,
        iterations: int | None = None,
        slot_mask: Tensor | None = None,
        input_mask: Tensor | None = None,
        return_attention: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend to inputs.

        Args:
            inputs: [B, N, C].
            slots: initial ones, [B, K, D]; None for the module's own.
            num_slots: K of the module's own slots, instead of the constructor's.
            iterations: T, instead of the constructor's; at least 1.
            slot_mask: [B, K], bool, True where the slot takes part. Others get an update of 0.
            input_mask: [B, N], bool, True where the input counts, of each image one at least.
            return_attention: whether the last iteration's softmax is returned; it is
                differentiable.
            generator: of the noise of sampled slots.

        Returns:
            Slots, [B, K, D]; with `return_attention` also the attention, [B, K, N] or, with
            several heads, [B, K, H, N].

        Raises:
            ValueError: if there are no initial slots, or not one iteration; if an argument is of
                another kind, shape or dtype; or `num_slots` is not the number of given slots.
        """
        self._check_call(inputs, slots, input_mask, generator)
        _require_whole(iterations=iterations, num_slots=num_slots)
        _require_flags(return_attention=return_attention)
        times = self.iterations if iterations is None else iterations
        if slots is None:
            slots = self._initial(len(inputs), num_slots, generator)
        elif num_slots not in (None, slots.shape[1]):
            raise ValueError(
                f"slot attention: num_slots: expected that of slots, {slots.shape[1]}, "
                f"got {num_slots}"
            )
        if slot_mask is not None:
            _check_shape("slot_mask", slot_mask, (len(inputs), slots.shape[1]), "bool")
        found = iterate(
            self.layers(),
            self.rules,
            inputs,
            slots,
            times,
            slot_mask=slot_mask,
            input_mask=input_mask,
            keep_attention="last" if return_attention else "none",
        )
        return (found.slots[-1], found.attention[-1]) if return_attention else found.slots[-1]

    def _initial(
        self, batch: int, num_slots: int | None, generator: torch.Generator | None
    ) -> Tensor:
        count = self.num_slots if num_slots is None else num_slots
        if self.initial is None or count is None:
            raise ValueError("slot attention: expected slots or num_slots, got neither")
        slots: Tensor = self.initial(batch, count, generator)
        return slots

    def _check_call(
        self,
        inputs: Tensor,
        slots: Tensor | None,
        input_mask: Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        """Raise a ValueError for what is of another kind, shape or dtype."""
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(
                "slot attention: generator: expected a torch.Generator or None, got "
                f"{shown(generator)}"
            )
        _check_shape("inputs", inputs, ("B", "N", self.input_dim))
        if input_mask is not None:
            _check_shape("input_mask", input_mask, (*inputs.shape[:2],), "bool")
        if slots is not None:
            _check_shape("slots", slots, (len(inputs), "K", self.dim))
        usual = getattr(self.query.weight, "dtype", None)
        if {x.dtype for x in (inputs, slots) if x is not None} == {usual}:
            return  # without a walk through all parameters
        dtypes = {p.dtype for p in self.parameters()}
        if autocasts(inputs):
            dtypes |= {torch.float32, torch.bfloat16, torch.float16}
        for name, tensor in (("inputs", inputs), ("slots", slots)):
            if tensor is not None and dtypes and tensor.dtype not in dtypes:
                expected = " or ".join(sorted(map(str, dtypes)))
                raise ValueError(f"slot attention: {name}: expected {expected}, got {tensor.dtype}")


def _require_flags(**flags: bool) -> None:
    for name, flag in flags.items():
        require_flag(OWNER, name, flag)


def _require_whole(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None:
            whole_number(OWNER, name, number, 1)


def _check_shape(
    name: str, given: Tensor, expected: tuple[int | str, ...], kind: str = "a tensor"
) -> None:
    """Raise a ValueError for another number of axes, or another length where one is a number."""
    got = [*given.shape] if isinstance(given, Tensor) else None
    if (
        got is None
        or len(got) != len(expected)
        or any(
            isinstance(length, int) and length != found
            for length, found in zip(expected, got, strict=True)
        )
    ):
        shape = ", ".join(map(str, expected))
        found = got if got is not None else type(given).__name__
        raise ValueError(f"slot attention: {name}: expected {kind} [{shape}], got {found}")


def _check(
    dim: int,
    width: int,
    heads: int,
    num_slots: int | None,
    initial_slots: str,
    maps_to_slots: bool,
) -> None:
    """Raise a ValueError where sizes do not fit."""
    require_choice("initial_slots", initial_slots, InitialSlots)
    if width % heads:
        raise ValueError(f"slot attention: heads: expected a divisor of {width}, got {heads}")
    if initial_slots == "learned" and num_slots is None:
        raise ValueError("slot attention: num_slots: learned slots have a number, got None")
    if width != dim and not maps_to_slots:
        raise ValueError(
            f"slot attention: an update that is added has the slots' width {dim}, got {width}"
        )
