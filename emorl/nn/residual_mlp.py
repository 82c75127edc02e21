"""The MLP of slot attention: slots plus what layers make of their norm.

Legend: B batch, K slots, D slot width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from emorl.nn.networks import is_plain


@dataclass(frozen=True)
class ResidualMLP:
    """Layers whose result is added to the slots.

    Attributes:
        norm: applied to the slots [B, K, D] first.
        mlp: from normalised slots to what is added.
    """

    norm: nn.Module
    mlp: nn.Module

    def __call__(self, slots: Tensor) -> Tensor:
        """The sum, [B, K, D]."""
        added: Tensor = self.mlp(self.norm(slots))
        return slots + added

    def is_plain(self) -> bool:
        """Whether it is a layer norm and two linear layers with biases, and a ReLU between."""
        if not (is_plain_norm(self.norm) and is_plain(self.mlp, nn.Sequential)):
            return False
        layers: list[Any] = [*self.mlp]
        kinds = (nn.Linear, nn.ReLU, nn.Linear)
        return (
            len(layers) == len(kinds)
            and all(map(is_plain, layers, kinds))
            and all(layer.bias is not None for layer in layers[::2])
        )


def is_plain_norm(norm: nn.Module | None) -> bool:
    """Whether this is a layer norm of the last dimension, with a weight and a bias."""
    return (
        norm is not None
        and is_plain(norm, nn.LayerNorm)
        and len(norm.normalized_shape) == 1
        and norm.bias is not None
    )
