"""Features of pixels, and attention to them, with the last layers left undone.

Keys, values and pixel features are linear in the last hidden layer of the encoder's MLP, so their
matrices can be applied to the few slots instead of the many pixels (Emami et al. 2021 compute
q . W_k f and the mean of W_v f; here (W_k^T q) . f and W_v times the mean of f). Exact in real
numbers; three tensors of pixels and the products that made them disappear, forward and backward,
and one tensor serves the attention as keys and values.

Legend: B batch, K slots, N pixels, C channels, H hidden channels, D width of slots and queries, E
of values.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emorl.nn.layers import is_plain
from emorl.ops import Backend, slot_attention


class LinearFeatures(NamedTuple):
    """Pixel features whose last layer has not been applied: `hidden @ weight.T + bias`.

    Attributes:
        hidden: [B, N, H].
        weight: [C, H].
        bias: [C], or None for zeros.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def before(cls, layer: nn.Module, hidden: Tensor) -> LinearFeatures:
        """What `layer` makes of `hidden` [B, N, H], left undone where it is an `nn.Linear`."""
        if not is_plain(layer, nn.Linear):
            return cls.of(layer(hidden))
        return cls(hidden, layer.weight, layer.bias)

    @classmethod
    def of(cls, features: Tensor) -> LinearFeatures:
        """Features [B, N, C] as they are."""
        identity = torch.eye(features.shape[2], dtype=features.dtype, device=features.device)
        return cls(features, identity, None)

    def to(self, dtype: torch.dtype) -> LinearFeatures:
        """The same in another dtype."""
        return LinearFeatures(*(x if x is None else x.to(dtype) for x in self))  # type: ignore[arg-type]

    def dense(self) -> Tensor:
        """The features, [B, N, C]."""
        return F.linear(self.hidden, self.weight, self.bias)


class AbsorbedAttention(NamedTuple):
    """Attention over the hidden layer of pixel features, or over the features themselves.

    Attributes:
        hidden: [B, N, H].
        key: from queries to the hidden layer, [D, H].
        key_bias: [D], or None for zeros.
        value: from the hidden layer to values, [E, H].
        value_bias: [E], or None for zeros.
    """

    hidden: Tensor
    key: Tensor
    key_bias: Tensor | None
    value: Tensor
    value_bias: Tensor | None

    @classmethod
    def of(
        cls,
        features: LinearFeatures | Tensor,
        key: Tensor,
        value: Tensor,
        key_bias: Tensor | None = None,
        value_bias: Tensor | None = None,
    ) -> Self:
        """Absorb the projections `key` [D, C] and `value` [E, C] and their biases."""
        if isinstance(features, Tensor):
            return cls(features, key, key_bias, value, value_bias)
        weight, bias = features.weight, features.bias
        if bias is not None:
            key_bias, value_bias = (
                own @ bias if given is None else own @ bias + given
                for own, given in ((key, key_bias), (value, value_bias))
            )
        return cls(features.hidden, key @ weight, key_bias, value @ weight, value_bias)

    @classmethod
    def through(cls, features: LinearFeatures | Tensor, key: nn.Module, value: nn.Module) -> Self:
        """Attention over what layers make of features; they are absorbed where that is exact.

        That is, where both are an `nn.Linear`; else keys and values are made, and lie side by side
        in `hidden`.
        """
        if is_plain(key, nn.Linear) and is_plain(value, nn.Linear):
            return cls.of(features, key.weight, value.weight, key.bias, value.bias)
        dense = features if isinstance(features, Tensor) else features.dense()
        keys, values = key(dense), value(dense)
        both = LinearFeatures.of(torch.cat([keys, values], dim=2))
        widths = (keys.shape[2], values.shape[2])
        return cls.of(both, *both.weight.split(widths))

    def attend(
        self,
        query: Tensor,
        return_attention: bool = False,
        backend: Backend = "auto",
        *,
        eps: float = 1e-8,
        slot_mask: Tensor | None = None,
        heads: int = 1,
    ) -> tuple[Tensor, Tensor | None]:
        """What `slot_attention` gives for dense keys and values.

        Args:
            query: scaled, [B, K, D].
            return_attention: whether the attention is wanted.
            backend: of the op.
            eps: added to each attention weight.
            slot_mask: [B, K], bool, True where the slot takes part.
            heads: of the queries, keys and values; with several, one softmax runs over all slots
                and heads of a pixel.

        Returns:
            Updates, [B, K, E]; the attention, [B, K, N] (with several heads [B, K, heads, N]), or
            None.
        """
        queries, bias = self._absorb(query, heads)
        if slot_mask is not None and heads > 1:
            slot_mask = slot_mask.repeat_interleave(heads, dim=1)
        options: dict[str, Any] = {"logit_bias": bias, "slot_mask": slot_mask, "eps": eps}
        options |= {"return_attention": return_attention, "backend": backend}
        result: Any = slot_attention(queries, self.hidden, self.hidden, **options)
        mean, attention = result if return_attention else (result, None)
        if heads == 1:
            updates = F.linear(mean, self.value, self.value_bias)
        else:
            by_head = mean.unflatten(1, (-1, heads))
            values = self.value.unflatten(0, (heads, -1))
            updates = torch.einsum("bkhc,hec->bkhe", by_head, values).flatten(2)
            updates = updates if self.value_bias is None else updates + self.value_bias
            attention = None if attention is None else attention.unflatten(1, (-1, heads))
        if slot_mask is not None and self.value_bias is not None:
            updates = updates.masked_fill(~slot_mask[:, ::heads, None], 0)
        return updates, attention

    def mean(self) -> Tensor:
        """The mean of all values, [B, E]."""
        return F.linear(self.hidden.mean(dim=1), self.value, self.value_bias)

    def logits(self, query: Tensor, heads: int = 1) -> Tensor:
        """What the softmax is taken of, [B, K * heads, N]."""
        queries, bias = self._absorb(query, heads)
        logits = queries @ self.hidden.mT
        return logits if bias is None else logits + bias[..., None]

    def _absorb(self, query: Tensor, heads: int) -> tuple[Tensor, Tensor | None]:
        """Queries of the hidden layer, [B, K * heads, H], and what their logits have on top."""
        if heads == 1:
            return query @ self.key, None if self.key_bias is None else query @ self.key_bias
        by_head = query.unflatten(2, (heads, -1))
        keys = self.key.unflatten(0, (heads, -1))
        queries = torch.einsum("bkhd,hdc->bkhc", by_head, keys).flatten(1, 2)
        if self.key_bias is None:
            return queries, None
        return queries, (by_head * self.key_bias.view(heads, -1)).sum(3).flatten(1)
