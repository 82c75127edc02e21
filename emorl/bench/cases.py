"""The inputs on which operators are tested and timed: one table for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from emorl.ops.mixture_nll import Likelihood


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
        """Leaves that require gradients: q, k, v (not where it is k) and logit_bias."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return values.to(device, dtype).requires_grad_()

        inputs = {
            "q": normal(self.batch, self.slots, self.key_width),
            "k": normal(self.batch, self.pixels, self.key_width),
            "logit_bias": normal(self.batch, self.slots),
        }
        if self.value_width is not None:
            inputs["v"] = normal(self.batch, self.pixels, self.value_width)
        return inputs


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
    SlotAttentionCase(4, 7, 9216, 64, 64),
    SlotAttentionCase(4, 7, 9216, 64),
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


@dataclass(frozen=True)
class MixtureNllCase:
    """Sizes of image [B,C,H,W], rgb [B,K,C,H,W] and mask_logits [B,K,1,H,W].

    "last": rgb and logits are views of one tensor whose channels are last, as decoders give it;
    "first": each is a tensor of its own.
    """

    batch: int
    slots: int
    height: int
    width: int
    channels: int = 3
    kind: Likelihood = "mixture"
    layout: Literal["last", "first"] = "last"
    per_slot_sigma: bool = False

    def __str__(self) -> str:
        sigma = "-sigmas" if self.per_slot_sigma else ""
        sizes = f"B{self.batch}K{self.slots}C{self.channels}H{self.height}W{self.width}"
        return f"{self.kind}{sigma}-{sizes}-{self.layout}"

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
        """The image, and leaves that require gradients: rgb and mask_logits."""
        generator = torch.Generator().manual_seed(0)
        size = (self.height, self.width)

        def normal(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return values.to(device, dtype)

        image = normal(self.batch, self.channels, *size).sigmoid()
        if self.layout == "last":
            decoded = normal(self.batch, self.slots, *size, self.channels + 1)
            rgb, mask_logits = decoded.permute(0, 1, 4, 2, 3).split([self.channels, 1], dim=2)
            rgb, mask_logits = rgb.detach(), mask_logits.detach()
        else:
            rgb = normal(self.batch, self.slots, self.channels, *size)
            mask_logits = normal(self.batch, self.slots, 1, *size)
        leaves = {"rgb": rgb.requires_grad_(), "mask_logits": mask_logits.requires_grad_()}
        return {"image": image, **leaves}

    def options(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Any]:
        """Keyword arguments of `mixture_nll`: kind, and sigma, which slots share or not."""
        sigmas = torch.linspace(0.09, 0.2, self.slots, dtype=torch.float64).to(device, dtype)
        return {"kind": self.kind, "sigma": sigmas if self.per_slot_sigma else 0.1}


# Sizes 0, 1 and prime, and one past each block: 32 pixels a tile and 512 a task on the CPU, 128 a
# block on the GPU.
MIXTURE_NLL = [
    MixtureNllCase(2, 7, 35, 35, kind="gaussian"),
    MixtureNllCase(2, 7, 35, 35, kind="mixture"),
    MixtureNllCase(2, 7, 35, 35, kind="mixture_joint"),
    MixtureNllCase(2, 4, 19, 27, kind="gaussian", layout="first"),
    MixtureNllCase(2, 4, 19, 27, kind="mixture", layout="first"),
    MixtureNllCase(2, 4, 19, 27, kind="mixture_joint", layout="first"),
    MixtureNllCase(2, 5, 16, 16, kind="mixture", per_slot_sigma=True),
    MixtureNllCase(2, 5, 16, 16, kind="mixture_joint", per_slot_sigma=True),
    MixtureNllCase(1, 1, 1, 1),
    MixtureNllCase(1, 1, 1, 1, kind="gaussian", layout="first"),
    MixtureNllCase(3, 3, 1, 33, channels=1),
    MixtureNllCase(1, 11, 43, 3, channels=4, kind="gaussian"),
    MixtureNllCase(1, 64, 7, 5, channels=2),
    MixtureNllCase(1, 64, 3, 5, channels=8, kind="mixture_joint"),
    MixtureNllCase(0, 3, 4, 5),
    MixtureNllCase(2, 3, 0, 5, kind="gaussian"),
    MixtureNllCase(2, 3, 4, 5, channels=0, layout="first"),
]

# CLEVR6 at 96 x 96 and 128 x 128, Multi-dSprites and Tetrominoes, as the models use them.
MIXTURE_NLL_TIMED = [
    MixtureNllCase(4, 7, 96, 96, kind="mixture"),
    MixtureNllCase(4, 7, 96, 96, kind="mixture", layout="first"),
    MixtureNllCase(4, 7, 96, 96, kind="gaussian"),
    MixtureNllCase(4, 7, 96, 96, kind="mixture_joint"),
    MixtureNllCase(4, 11, 128, 128, kind="gaussian"),
    MixtureNllCase(4, 7, 64, 64, kind="gaussian"),
    MixtureNllCase(32, 4, 35, 35, kind="gaussian"),
]

MIXTURE_NLL_BATCH_32 = [
    *(
        MixtureNllCase(32, 7, 96, 96, kind=kind, layout=layout)
        for kind in get_args(Likelihood)
        for layout in ("last", "first")
    ),
    MixtureNllCase(32, 6, 64, 64, kind="gaussian"),
    MixtureNllCase(32, 4, 35, 35, kind="gaussian"),
]


@dataclass(frozen=True)
class SpatialBroadcastCase:
    """Sizes of slot [M,C] or, by border class, [M,C,3,3], and of position [C,H,W]."""

    slots: int
    channels: int
    height: int
    width: int
    activation: Literal["elu", "relu", "none"] = "elu"
    border_classes: bool = False
    channels_last: bool = True

    def __str__(self) -> str:
        sizes = f"M{self.slots}C{self.channels}-{self.height}x{self.width}-{self.activation}"
        border = "-border" if self.border_classes else ""
        return f"{sizes}{border}-{'last' if self.channels_last else 'first'}"

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
        """Leaves that require gradients."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

        slot = normal(self.slots, self.channels, *((3, 3) if self.border_classes else ()))
        if self.channels_last:
            position = normal(self.height, self.width, self.channels).permute(2, 0, 1)
        else:
            position = normal(self.channels, self.height, self.width)
        return {"slot": slot.requires_grad_(), "position": position.requires_grad_()}


# Sizes 0, 1, 2, 3 and prime, and one past each block: 8 or 4 channels a vector and 8192 elements a
# tile on the CPU, 256 threads with 4 pixels each and 64 or 4 channels a block on the GPU.
SPATIAL_BROADCAST = [
    SpatialBroadcastCase(3, 16, 13, 11),
    SpatialBroadcastCase(3, 16, 13, 11, border_classes=True, activation="relu"),
    SpatialBroadcastCase(3, 16, 13, 11, channels_last=False),
    SpatialBroadcastCase(3, 16, 13, 11, channels_last=False, border_classes=True),
    SpatialBroadcastCase(2, 17, 5, 7, activation="relu"),
    SpatialBroadcastCase(2, 5, 33, 32, activation="none", border_classes=True),
    SpatialBroadcastCase(2, 65, 3, 9, border_classes=True),
    SpatialBroadcastCase(2, 9, 3, 911),
    SpatialBroadcastCase(2, 64, 3, 43, channels_last=False, activation="none"),
    SpatialBroadcastCase(5, 3, 2, 2, border_classes=True),
    SpatialBroadcastCase(5, 3, 3, 2, border_classes=True, channels_last=False),
    SpatialBroadcastCase(5, 3, 2, 3, border_classes=True, activation="none"),
    SpatialBroadcastCase(37, 4, 3, 3, border_classes=True),
    SpatialBroadcastCase(1, 1, 1, 1),
    SpatialBroadcastCase(7, 13, 1, 1, activation="relu"),
    SpatialBroadcastCase(4, 8, 1, 257, channels_last=False),
    SpatialBroadcastCase(0, 3, 4, 5),
    SpatialBroadcastCase(2, 0, 4, 5),
    SpatialBroadcastCase(2, 3, 0, 5),
    SpatialBroadcastCase(2, 3, 4, 0, channels_last=False),
]

# CLEVR6 at 96 x 96 and 128 x 128, Multi-dSprites and Tetrominoes, as the decoders use them.
SPATIAL_BROADCAST_TIMED = [
    SpatialBroadcastCase(28, 64, 104, 104),
    SpatialBroadcastCase(28, 64, 104, 104, channels_last=False),
    SpatialBroadcastCase(28, 64, 94, 94, border_classes=True),
    SpatialBroadcastCase(28, 64, 136, 136),
    SpatialBroadcastCase(28, 64, 72, 72),
    SpatialBroadcastCase(128, 32, 39, 39, activation="relu", border_classes=True),
    SpatialBroadcastCase(32, 16, 39, 39, activation="relu", border_classes=True),
]

SPATIAL_BROADCAST_BATCH_32 = [
    *(
        SpatialBroadcastCase(224, 64, side, side, border_classes=border, channels_last=last)
        for side, border in ((104, False), (94, True))
        for last in (True, False)
    ),
    SpatialBroadcastCase(192, 64, 72, 72),
    SpatialBroadcastCase(128, 32, 39, 39, activation="relu", border_classes=True),
]
