"""The modules of `slot-attention` on PyPI (Phil Wang, MIT), version 1.5, with our operator.

Constructors, calls, attributes, keys and shapes of the state dict, first weights and noise under a
seed are the package's; outputs and gradients differ by rounding. What differs: a second derivative
needs `backend="reference"`, which is plain PyTorch; the fused operator refuses it. `torch.func` and
forward mode get plain PyTorch by themselves.

Legend: B batch, N inputs, D width of inputs and slots, K slots.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.compat.gaussian import drawn
from emorl.compat.rules import RuledModule, rule
from emorl.nn.arguments import require
from emorl.nn.residual_mlp import ResidualMLP
from emorl.nn.slot_iterations import OWNER, SlotLayers, SlotRules, iterate, require_inputs
from emorl.ops import Backend, slot_attention


def _require_sizes(*, iters: int = 1, **sizes: int) -> None:
    """Raise a ValueError unless sizes are 1 or more, and iterations 0 or more."""
    require(OWNER, int, 0, iters=iters)
    require(OWNER, int, 1, **sizes)


class _DrawnSlots(nn.Module):
    """A Gaussian of slots [1, 1, D], and how often what is drawn from it is updated."""

    def __init__(self, num_slots: int, dim: int, iters: int) -> None:
        super().__init__()
        self.num_slots, self.iters = num_slots, iters
        self.slots_mu = nn.Parameter(torch.randn(1, 1, dim))
        self.slots_logsigma = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.xavier_uniform_(self.slots_logsigma)

    def _drawn(self, inputs: Tensor, num_slots: int | None) -> Tensor:
        """Slots [B, K, D] for inputs [B, N, D]; K is `num_slots`, or the constructor's."""
        count = self.num_slots if num_slots is None else num_slots
        require_inputs(inputs, self.slots_mu.shape[2])
        if not inputs.is_floating_point():
            raise ValueError(f"slot attention: inputs: expected floats, got {inputs.dtype}")
        return drawn(self.slots_mu, self.slots_logsigma, count, inputs)


class _Slots(_DrawnSlots, RuledModule):
    """What the first two modules do: draw slots, then iterate."""

    eps, scale = rule("eps"), rule("scale")
    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    gru: nn.Module
    mlp: nn.Module
    norm_input: nn.Module
    norm_slots: nn.Module
    norm_pre_ff: nn.Module

    def __init__(self, num_slots: int, dim: int, iters: int, rules: SlotRules) -> None:
        super().__init__(num_slots, dim, iters)
        self.dim, self._rules = dim, rules

    def forward(self, inputs: Tensor, num_slots: int | None = None) -> Tensor:
        """Slots [B, K, D] of inputs [B, N, D]; K is `num_slots`, or the constructor's."""
        slots = self._drawn(inputs, num_slots)
        if self.iters == 0:
            return slots
        return iterate(self._layers(), self._rules, inputs, slots, self.iters).slots[-1]

    def _layers(self) -> SlotLayers:
        return SlotLayers(
            query=self.to_q,
            key=self.to_k,
            value=self.to_v,
            norm_inputs=self.norm_input,
            norm_slots=self.norm_slots,
            gru=self.gru,
            mlp=ResidualMLP(self.norm_pre_ff, self.mlp),
            combine=getattr(self, "combine_heads", None),
        )


class SlotAttention(_Slots):
    """Slots that compete for inputs (Locatello et al. 2020); queries, keys and values have biases.

    Args:
        num_slots: K.
        dim: D.
        iters: iterations.
        eps: added to each attention weight.
        hidden_dim: width of the MLP's hidden layer, at least D.
        backend: of `emorl.ops.slot_attention`; not in the package.
    """

    def __init__(
        self,
        num_slots: int,
        dim: int,
        iters: int = 3,
        eps: float = 1e-8,
        hidden_dim: int = 128,
        *,
        backend: Backend = "auto",
    ) -> None:
        _require_sizes(num_slots=num_slots, dim=dim, iters=iters, hidden_dim=hidden_dim)
        super().__init__(
            num_slots, dim, iters, SlotRules(scale=dim**-0.5, eps=eps, backend=backend)
        )
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = _mlp(dim, hidden_dim)
        self.norm_input = nn.LayerNorm(dim)
        self.norm_slots = nn.LayerNorm(dim)
        self.norm_pre_ff = nn.LayerNorm(dim)


class MultiHeadSlotAttention(_Slots):
    """Several heads, each with a softmax over slots of its own.

    Args:
        num_slots: K.
        dim: D.
        heads: number of heads.
        dim_head: width of a head's queries, keys and values.
        iters: iterations.
        eps: added to each attention weight.
        hidden_dim: width of the MLP's hidden layer, at least D.
        legacy_scale: scale queries by dim ** -0.5, as the package did before 1.5, instead of
            dim_head ** -0.5: the same weights give other slots. Not in the package.
        backend: of `emorl.ops.slot_attention`; not in the package.
    """

    def __init__(
        self,
        num_slots: int,
        dim: int,
        heads: int = 4,
        dim_head: int = 64,
        iters: int = 3,
        eps: float = 1e-8,
        hidden_dim: int = 128,
        *,
        legacy_scale: bool = False,
        backend: Backend = "auto",
    ) -> None:
        sizes = {"num_slots": num_slots, "dim": dim, "heads": heads, "dim_head": dim_head}
        _require_sizes(**sizes, iters=iters, hidden_dim=hidden_dim)
        require(OWNER, bool, legacy_scale=legacy_scale)
        scale = (dim if legacy_scale else dim_head) ** -0.5
        rules = SlotRules(scale=scale, heads=heads, eps=eps, backend=backend)
        super().__init__(num_slots, dim, iters, rules)
        self.norm_input = nn.LayerNorm(dim)
        self.norm_slots = nn.LayerNorm(dim)
        self.norm_pre_ff = nn.LayerNorm(dim)
        width = heads * dim_head
        self.to_q = nn.Linear(dim, width)
        self.to_k = nn.Linear(dim, width)
        self.to_v = nn.Linear(dim, width)
        self.combine_heads = nn.Linear(width, dim)
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = _mlp(dim, hidden_dim)


def _mlp(dim: int, hidden_dim: int) -> nn.Sequential:
    hidden = max(dim, hidden_dim)
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))


class AdaptiveSlotWrapper(nn.Module):
    """Decides for each slot whether it is kept (Fan et al. 2024), by straight-through Gumbel noise.

    Args:
        slot_attn: one of the modules above, or anything with a `dim` that gives slots.
        temperature: of the decision.
    """

    def __init__(self, slot_attn: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        require(OWNER, float, temperature=temperature)
        if temperature <= 0:
            raise ValueError(f"AdaptiveSlotWrapper: temperature: expected > 0, got {temperature}")
        self.slot_attn, self.temperature = slot_attn, temperature
        dim: Any = slot_attn.dim
        self.pred_keep_slot = nn.Linear(dim, 2, bias=False)

    def forward(self, x: Tensor, **slot_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Slots [B, K, D], and 1 for each that is kept, else 0, [B, K]; noisy in eval mode too."""
        slots = self.slot_attn(x, **slot_kwargs)
        logits = self.pred_keep_slot(slots) / self.temperature
        noise = -_clamped_log(-_clamped_log(torch.rand_like(logits)))
        chosen = F.one_hot((logits + noise).argmax(dim=-1), 2).to(logits.dtype)
        soft = logits.softmax(dim=-1)
        return slots, (chosen + soft - soft.detach())[..., 1]


def _clamped_log(x: Tensor) -> Tensor:
    return x.clamp(min=1e-20).log()


class OrthoSlotWrapper(nn.Module):
    """Adds a loss that pushes slots apart: the mean square of their centred inner products.

    Args:
        slot_attention: gives slots, or a tuple that begins with them.
    """

    def __init__(self, slot_attention: nn.Module) -> None:
        super().__init__()
        self.slot_attention = slot_attention

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What the module gave, and the loss."""
        out = self.slot_attention(*args, **kwargs)
        others = out if isinstance(out, tuple) else (out,)
        slots = others[0]
        centred = slots - slots.mean(dim=1, keepdim=True)
        apart = ~torch.eye(slots.shape[1], dtype=torch.bool, device=slots.device)
        return (*others, (centred @ centred.mT)[:, apart].square().mean())


class MetaSlotAttention(nn.Module):
    """Merges slots that a codebook takes for one (Liu et al. 2025).

    Args:
        slot_attention: a module with a `dim` that gives slots.
        codebook_size: number of codes.
        vq_decay: of the codebook's moving average.
        vq_kwargs: further arguments of `vector_quantize_pytorch.VectorQuantize`.

    Raises:
        ModuleNotFoundError: if `vector-quantize-pytorch` is not installed, whose module it holds.
    """

    def __init__(
        self,
        slot_attention: nn.Module,
        *,
        codebook_size: int = 1024,
        vq_decay: float = 0.9,
        **vq_kwargs: Any,
    ) -> None:
        super().__init__()
        quantiser = importlib.import_module("vector_quantize_pytorch").VectorQuantize
        self.slot_attention = slot_attention
        options = {
            "decay": vq_decay,
            "kmeans_init": True,
            "kmeans_iters": 10,
            "threshold_ema_dead_code": 2,
            **vq_kwargs,
        }
        self.vq = quantiser(dim=slot_attention.dim, codebook_size=codebook_size, **options)

    def forward(self, inputs: Tensor, **slot_attn_kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Merged slots first, then zeros, [B, K, D]; True for the former, [B, K]; the VQ loss."""
        slots = self.slot_attention(inputs, **slot_attn_kwargs)
        _, codes, loss = self.vq(slots)
        same = codes[:, :, None] == codes[:, None]  # [B, K, K]
        merged = F.normalize(same.to(slots.dtype) + 1e-8, p=1, dim=-1) @ slots
        repeated = same.tril(-1).any(dim=-1)
        order = repeated.long().argsort(dim=-1, stable=True)
        first = ~repeated.gather(1, order)
        packed = merged.gather(1, order[..., None].expand_as(merged))
        return packed.where(first[..., None], 0), first, loss


class _WeightedAttention(nn.Module):
    """Attention between slots and inputs; `to_slots` or from them."""

    def __init__(self, dim: int, eps: float, to_slots: bool, backend: Backend) -> None:
        super().__init__()
        self.eps, self.scale = eps, dim**-0.5
        self.to_slots, self.backend = to_slots, backend
        self.norm_input = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)

    def forward(self, inputs: Tensor, context: Tensor) -> Tensor:
        """What each of the inputs takes from the context."""
        context = self.norm_context(context)
        q = self.to_q(self.norm_input(inputs)) * self.scale
        k, v = self.to_k(context), self.to_v(context)
        if self.to_slots:
            return slot_attention(q, k, v, eps=self.eps, backend=self.backend)
        weights = (q @ k.mT).softmax(dim=2) + self.eps
        return weights / weights.sum(dim=1, keepdim=True) @ v


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.net = _mlp(dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """The MLP of the normalised x."""
        output: Tensor = self.net(self.norm(x))
        return output


class _GatedResidual(nn.Module):
    """A GRU cell in place of the sum of a residual connection."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.gru = nn.GRUCell(dim, dim)
        self.fn = fn

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """The next x."""
        update: Tensor = self.fn(x, *context)
        moved: Tensor = self.gru(update.flatten(0, 1), x.flatten(0, 1))
        return moved.view_as(x)


class SlotAttentionExperimental(_DrawnSlots):
    """Slots and inputs that update each other; the way to slots is our operator.

    Args:
        num_slots: K.
        dim: D.
        iters: iterations.
        eps: added to each attention weight.
        hidden_dim: width of the MLPs' hidden layers, at least D.
        backend: of `emorl.ops.slot_attention`; not in the package.
    """

    def __init__(
        self,
        num_slots: int,
        dim: int,
        iters: int = 3,
        eps: float = 1e-8,
        hidden_dim: int = 128,
        *,
        backend: Backend = "auto",
    ) -> None:
        _require_sizes(num_slots=num_slots, dim=dim, iters=iters, hidden_dim=hidden_dim)
        super().__init__(num_slots, dim, iters)
        self.norm_inputs = nn.LayerNorm(dim)

        def gated(part: Any) -> _GatedResidual:
            return _GatedResidual(dim, part)

        self.slots_to_inputs_attn = gated(_WeightedAttention(dim, eps, True, backend))
        self.slots_ff = gated(_FeedForward(dim, hidden_dim))
        self.inputs_to_slots_attn = gated(_WeightedAttention(dim, eps, False, backend))
        self.inputs_ff = gated(_FeedForward(dim, hidden_dim))

    def forward(self, inputs: Tensor, num_slots: int | None = None) -> tuple[Tensor, Tensor]:
        """Slots [B, K, D] and updated inputs [B, N, D]."""
        slots, inputs = self._drawn(inputs, num_slots), self.norm_inputs(inputs)
        for _ in range(self.iters):
            slots = self.slots_ff(self.slots_to_inputs_attn(slots, inputs))
            inputs = self.inputs_ff(self.inputs_to_slots_attn(inputs, slots))
        return slots, inputs
