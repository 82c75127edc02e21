"""The inputs on which slot attention is tested and timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emorl.bench.cases.normals import normals


@dataclass(frozen=True)
class SlotAttentionCase:
    """Sizes of q [B,K,D], k [B,N,D] and v [B,N,E]; without E, one tensor serves as k and v."""

    batch: int
    slots: int
    pixels: int
    key_width: int
    value_width: int | None = None

    def __str__(self) -> str:
        values = "shared" if self.value_width is None else f"E{self.value_width}"
        return f"B{self.batch}K{self.slots}N{self.pixels}D{self.key_width}{values}"

    def inputs(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Leaves that require gradients: q, k, v (not where it is k) and logit_bias.

        Queries are scaled, as attention's are: logits of a variance of 1.
        """
        normal = normals(dtype, device)
        inputs = {
            "q": normal(self.batch, self.slots, self.key_width) * max(1, self.key_width) ** -0.5,
            "k": normal(self.batch, self.pixels, self.key_width),
            "logit_bias": normal(self.batch, self.slots),
        }
        if self.value_width is not None:
            inputs["v"] = normal(self.batch, self.pixels, self.value_width)
        return {name: x.requires_grad_() for name, x in inputs.items()}

    def products(self) -> tuple[int, ...]:
        """How many products are summed in the output and in the gradient of each input."""
        of_values = [] if self.value_width is None else [self.slots]
        return self.pixels, self.pixels, self.slots, self.pixels, *of_values


# Sizes 0, 1 and prime, and one past each block of the CPU kernel: 32 pixels a tile, 6 slots,
# 8 or 16 columns. On a GPU, one whose rows fill a multiprocessor's shared memory with one tile.
SLOT_ATTENTION = [
    SlotAttentionCase(2, 4, 35, 32, 32),
    SlotAttentionCase(1, 1, 1, 1, 1),
    SlotAttentionCase(2, 7, 33, 9, 17),
    SlotAttentionCase(3, 11, 131, 13, 5),
    SlotAttentionCase(2, 6, 32, 16, 8),
    SlotAttentionCase(1, 13, 65, 33, 15),
    SlotAttentionCase(1, 64, 40, 256, 257),
    SlotAttentionCase(1, 32, 70, 256, 252),
    SlotAttentionCase(2, 5, 1225, 64),
    SlotAttentionCase(2, 3, 67, 7),
    SlotAttentionCase(0, 3, 4, 5, 6),
    SlotAttentionCase(2, 0, 4, 5, 6),
    SlotAttentionCase(2, 3, 4, 0, 6),
    SlotAttentionCase(2, 3, 4, 5, 0),
]

# The models' own: Tetrominoes 35 x 35, Multi-dSprites 64 x 64, CLEVR6 96 x 96, ClevrTex 128 x 128;
# with separate keys and values, and with features that serve as both.
SLOT_ATTENTION_TIMED = [
    SlotAttentionCase(4, 7, 9216, 64),
    SlotAttentionCase(4, 7, 9216, 64, 64),
    SlotAttentionCase(32, 4, 1225, 64, 64),
    SlotAttentionCase(32, 4, 1225, 64),
    SlotAttentionCase(32, 6, 4096, 64),
    SlotAttentionCase(4, 11, 16384, 64),
    SlotAttentionCase(32, 7, 9216, 64),
]

# On a GPU, at the official batch: every form on CLEVR6, and the other data sets' sizes.
SLOT_ATTENTION_BATCH_32 = [
    SlotAttentionCase(32, 7, 9216, 64),
    SlotAttentionCase(32, 7, 9216, 64, 64),
    SlotAttentionCase(32, 6, 4096, 64),
    SlotAttentionCase(32, 4, 1225, 64),
]

# Inputs of other networks than ours: patches of a vision transformer, or pixels, by their width.
SLOT_ATTENTION_WIDTHS = [
    SlotAttentionCase(2, 7, inputs, width, width)
    for inputs in (196, 1024, 4096, 16384)
    for width in (64, 256, 512, 768)
]
