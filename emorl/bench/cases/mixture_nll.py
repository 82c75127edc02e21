"""The inputs on which the mixture likelihood is tested and timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from emorl.bench.cases.normals import normals
from emorl.ops.mixture_nll import Likelihood


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
        normal, size = normals(dtype, device), (self.height, self.width)
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


class JoinedMixtureNllCase(MixtureNllCase):
    """The same with rgb and logits in one tensor, as `mixture_nll_and_gradient` takes them."""

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Tensor]:
        """The image, and a leaf that requires gradients: decoded [B,K,C+1,H,W]."""
        image, *apart = super().inputs(dtype, device).values()
        decoded = torch.cat(apart, dim=2).detach()
        if self.layout == "last":
            decoded = decoded.movedim(2, -1).contiguous().movedim(-1, 2)
        return {"image": image, "decoded": decoded.requires_grad_()}


# Sizes 0, 1 and prime, and one past each block: 32 pixels a tile and 512 a task on the CPU, 128 a
# block on the GPU.
MIXTURE_NLL = [
    MixtureNllCase(2, 7, 35, 35, kind="gaussian"),
    MixtureNllCase(2, 7, 35, 35, kind="mixture"),
    MixtureNllCase(2, 7, 35, 35, kind="mixture_joint"),
    MixtureNllCase(2, 4, 19, 27, kind="gaussian", layout="first"),
    MixtureNllCase(2, 4, 19, 27, kind="mixture", layout="first"),
    MixtureNllCase(2, 4, 19, 27, kind="mixture_joint", layout="first"),
    MixtureNllCase(2, 7, 9, 16, kind="mixture", layout="first"),
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

# What models learn from.
MIXTURE_NLL_AND_GRADIENT_TIMED = [
    *(JoinedMixtureNllCase(4, 7, 96, 96, kind=kind) for kind in get_args(Likelihood)),
    JoinedMixtureNllCase(4, 7, 64, 64, kind="gaussian"),
    JoinedMixtureNllCase(32, 4, 35, 35, kind="gaussian"),
]

MIXTURE_NLL_AND_GRADIENT_BATCH_32 = [
    *(JoinedMixtureNllCase(32, 7, 96, 96, kind=kind) for kind in get_args(Likelihood)),
    JoinedMixtureNllCase(32, 6, 64, 64, kind="gaussian"),
    JoinedMixtureNllCase(32, 4, 35, 35, kind="gaussian"),
]
