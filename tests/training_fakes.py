"""A model and images that are quick to train on, for the tests of training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from emorl.data import Batch, ObjectDataset
from emorl.models import Decomposition, ObjectCentricModel, Objective
from emorl.models.base import Request
from emorl.models.config import ModelConfig
from emorl.nn import standard_normal

SIZE = 8


@dataclass(kw_only=True)
class FakeConfig(ModelConfig):
    """A network of hardly anything; `noise` scales what the generator draws."""

    MAY_BE_ZERO = ("refinement_steps",)

    image_size: tuple[int, int] = (SIZE, SIZE)
    num_slots: int = 3
    refinement_steps: int = 1
    sigma: float = 0.3
    noise: float = 1.0


class FakeModel(ObjectCentricModel):
    """Explains each pixel by K learned colours; its noise moves the colours."""

    name: ClassVar[str] = "fake"
    Config = FakeConfig
    refines = takes_geco = True

    def __init__(self, config: FakeConfig | None = None) -> None:
        super().__init__(config or FakeConfig())
        self.masks = nn.Conv2d(3, self.config.num_slots, 3, padding=1)
        self.colours = nn.Parameter(torch.rand(self.config.num_slots, 3))

    def _decompose(self, request: Request) -> Decomposition:
        return self._explain(request)

    def _objective(self, request: Request) -> Objective:
        terms: dict[str, Tensor] = {}
        loss = torch.zeros(())
        for i in range(request.refinement_steps + 1):
            decomposition = self._explain(request)
            error = decomposition.reconstruction - request.target
            nll = error.square().flatten(1).sum(1) / (2 * self.config.sigma**2)
            kl = self.colours.square().sum().expand(len(nll))
            loss = loss + _loss(request, nll.mean(), kl)
            terms[f"nll_{i}"] = nll.detach()
            terms["kl_layer_1" if i == 0 else f"kl_refinement_{i}"] = kl.detach()
        return Objective(loss, nll.detach(), kl.detach(), terms, decomposition)

    def _explain(self, request: Request) -> Decomposition:
        pixels = request.target
        slots = self.colours.expand(len(pixels), -1, -1)
        noise = standard_normal(slots, request.generator)
        colours = (slots + 0.01 * self.config.noise * noise).sigmoid()
        masks = self.masks(pixels).softmax(1)[:, :, None]
        components = colours[..., None, None].expand(-1, -1, -1, SIZE, SIZE)
        return Decomposition((masks * components).sum(1), masks, components, colours)


def _loss(request: Request, nll: Tensor, kl: Tensor) -> Tensor:
    """The loss of one decomposition: weighted, or with a constrained likelihood."""
    weighted = request.kl_weight * kl.mean()
    if request.constraint is None:
        return request.nll_weight * nll + weighted
    return request.constraint.penalty(nll, request.target[0].numel()) + weighted


class FakeImages(ObjectDataset):
    """Squares on black, a pure function of the index; every third image is empty."""

    name = "squares"
    image_size = (SIZE, SIZE)

    def __init__(self, length: int = 48) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        mask = torch.zeros(len(indices), 1, SIZE, SIZE, dtype=torch.uint8)
        image = torch.zeros(len(indices), 3, SIZE, SIZE, dtype=torch.uint8)
        for row, index in enumerate(indices):
            if index % 3:
                top, colour = index % 4, torch.tensor([40 * (index % 6), 255, 5 * index])
                mask[row, :, top : top + 3, 1:4] = 1
                mask[row, :, top : top + 3, 5:8] = 2
                image[row] = (mask[row] * colour[:, None, None]).to(torch.uint8)
        return Batch(image, mask, {}, torch.tensor(list(indices)))
