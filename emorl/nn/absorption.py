"""Slot attention that never makes keys and values.

Keys, values and the pixel features themselves are linear in the hidden layer before them, so the
matrices can be applied to the few slots instead of the many pixels (Emami et al. 2021 compute
q . W_k f and the mean of W_v f; here (W_k^T q) . f and W_v times the mean of f). Exact in real
numbers; three tensors of pixels and the products that made them disappear, forward and backward,
and one tensor serves the attention as keys and values.

Legend: B batch, K slots, N pixels, H hidden channels, C channels, D width of queries, E of values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from emorl.ops import Backend, slot_attention


class LinearFeatures(NamedTuple):
    """Pixel features whose last layer has not been applied: `hidden @ weight.T + bias`.

    Attributes:
        hidden: [B, N, H].
        weight: [C, H].
        bias: [C].
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    def dense(self) -> Tensor:
        """The features, [B, N, C]."""
        return F.linear(self.hidden, self.weight, self.bias)


class AbsorbedAttention(NamedTuple):
    """Attention over the hidden layer of pixel features.

    Attributes:
        hidden: [B, N, H].
        key: from queries to the hidden layer, [D, H].
        key_bias: [D].
        value: from the hidden layer to values, [E, H].
        value_bias: [E].
    """

    hidden: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor

    @classmethod
    def of(cls, features: LinearFeatures, key: Tensor, value: Tensor) -> AbsorbedAttention:
        """Absorb the projections `key` [D, C] and `value` [E, C], which have no biases."""
        weight, bias = features.weight, features.bias
        return cls(features.hidden, key @ weight, key @ bias, value @ weight, value @ bias)

    def attend(
        self, query: Tensor, return_attention: bool = False, backend: Backend = "auto"
    ) -> tuple[Tensor, Tensor | None]:
        """What `slot_attention` gives for dense keys and values.

        Args:
            query: scaled, [B, K, D].
            return_attention: whether the attention is wanted.
            backend: of the op.

        Returns:
            Updates, [B, K, E]; the softmax over slots, [B, K, N], or None.
        """
        arguments = (query @ self.key, self.hidden, self.hidden)
        bias, attention = query @ self.key_bias, None
        if return_attention:
            mean, attention = slot_attention(
                *arguments, logit_bias=bias, return_attention=True, backend=backend
            )
        else:
            mean = slot_attention(*arguments, logit_bias=bias, backend=backend)
        return F.linear(mean, self.value, self.value_bias), attention
