"""The inputs on which spatial broadcasting is tested and timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emorl.bench.cases.normals import normals
from emorl.ops.spatial_broadcast import Activation


@dataclass(frozen=True)
class SpatialBroadcastCase:
    """Sizes of slot [M,C] or, by border class, [M,C,3,3], and of position [C,H,W]."""

    slots: int
    channels: int
    height: int
    width: int
    activation: Activation = "elu"
    border_classes: bool = False
    channels_last: bool = True

    def __str__(self) -> str:
        sizes = f"M{self.slots}C{self.channels}-{self.height}x{self.width}-{self.activation}"
        border = "-border" if self.border_classes else ""
        return f"{sizes}{border}-{'last' if self.channels_last else 'first'}"

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
        """Leaves that require gradients."""
        normal = normals(dtype, device)
        slot = normal(self.slots, self.channels, *((3, 3) if self.border_classes else ()))
        if self.channels_last:
            position = normal(self.height, self.width, self.channels).permute(2, 0, 1)
        else:
            position = normal(self.channels, self.height, self.width)
        return {"slot": slot.requires_grad_(), "position": position.requires_grad_()}


# Sizes 0, 1, 2, 3 and prime, and one past each block: 8 or 4 channels a vector and 8192 elements a
# tile on the CPU, 256 threads with 4 packs each and 64 or 4 lanes of channels a block on the GPU.
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
    SpatialBroadcastCase(2, 8, 1, 1031, channels_last=False, activation="relu"),
    SpatialBroadcastCase(2, 8, 3, 2, border_classes=True, channels_last=False),
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
