"""What EfficientMORL and IODINE share: posteriors that are refined by the gradient of their loss.

Legend: B batch, K slots, D slot width, H W image, I refinement steps.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from emorl.models.base import ObjectCentricModel, Objective, checked_images
from emorl.nn.refinement import ScoredPosterior, Weights
from emorl.training.objective import GECO


class Request(NamedTuple):
    """What is asked of an inference."""

    target: Tensor  # [B, 3, H, W] in [0, 1]
    num_slots: int
    steps: int
    weights: Weights  # of NLL and KL, in the loss that refinement descends
    generator: torch.Generator | None
    details: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.target.shape[2], self.target.shape[3]


class Inference(Protocol):
    """What an inference gives, at least."""

    @property
    def steps(self) -> list[ScoredPosterior]:
        """The posteriors before and after each refinement step."""


class RefinedModel(ObjectCentricModel):
    """A model whose posteriors are scored, and refined by the gradient of that, I times."""

    loss_weights: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        # Weights of NLL and KL in the last trained loss: refinement was trained on its gradient.
        self.register_buffer("loss_weights", torch.ones(2))

    def objective(
        self,
        images: Tensor,
        *,
        geco: GECO | None = None,
        step: int | None = None,
        kl_weight: float = 1.0,
        refinement_steps: int | None = None,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Objective:
        """The training loss: the weighted sum of the losses of all I + 1 decoded images.

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W].
            geco: constrains the reconstruction; None for the plain evidence lower bound.
            step: training step; `geco` stays out while it is in its warm start. None: past it.
            kl_weight: beta, weight of the KL terms; 0 also disables `geco`.
            refinement_steps: I; None for the configuration's.
            num_slots: K; None for the configuration's.
            generator: of all noise, each draw as [B * K, D]; None for the global one.

        Returns:
            Loss, terms "nll_0".. "nll_I" and the model's KL terms, and the last decomposition.

        Raises:
            ValueError: for images or numbers that are not possible, saying which are.
        """
        constrained = geco if geco is not None and kl_weight and geco.active(step) else None
        weights = (constrained.multiplier if constrained else 1.0, kl_weight)
        request = self._request(images, num_slots, refinement_steps, weights, generator)
        if self.training and torch.is_grad_enabled():
            for kept, weight in zip(self.loss_weights, weights, strict=True):
                kept.fill_(weight)
        inference, losses = self._infer(request), []
        for scored in inference.steps:
            nll = scored.score.nll
            penalty = constrained.penalty(nll, request.target[0].numel()) if constrained else nll
            losses.append(penalty + kl_weight * scored.kl.mean())
        return self._report(losses, inference)

    @torch.no_grad()
    def score(
        self,
        images: Tensor,
        *,
        refinement_steps: int | None = None,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Objective:
        """How well the model explains images; refines with the loss weights it was trained with.

        Arguments and result as `objective`; `loss` is the weighted sum without a constraint.
        """
        weights = self.loss_weights.unbind()
        request = self._request(images, num_slots, refinement_steps, weights, generator)
        inference = self._infer(request)
        losses = [weights[0] * s.score.nll + weights[1] * s.kl.mean() for s in inference.steps]
        return self._report(losses, inference)

    def _request(
        self,
        images: Tensor,
        num_slots: int | None,
        steps: int | None,
        weights: Weights,
        generator: torch.Generator | None,
        details: bool = False,
    ) -> Request:
        """Check what was asked for, and fill in the configuration's numbers."""
        target = checked_images(images, self.loss_weights.dtype)
        num_slots = self.config.num_slots if num_slots is None else num_slots
        steps = self.config.refinement_steps if steps is None else steps
        if num_slots < 1:
            raise ValueError(f"num_slots: expected 1 or more, got {num_slots}")
        if steps < 0:
            raise ValueError(f"refinement_steps: expected 0 or more, got {steps}")
        return Request(target, num_slots, steps, weights, generator, details)

    @abstractmethod
    def _infer(self, request: Request) -> Inference:
        """Infer, refine and score, with or without gradients."""

    @abstractmethod
    def _report(self, losses: list[Tensor], inference: Any) -> Objective:
        """The weighted sum of the steps' losses, and all terms."""
