"""Score once: an image's likelihood given its slots, differentiated a single time.

A refined loss needs d NLL / d slots at once, for the next update, and the decoder's gradients at
the end, for the optimiser. The final loss is linear in each NLL, and an NLL depends on the decoder
only through its slots and weights: so both gradients are taken together, right after scoring, all
activations are freed, and the final backward merely multiplies what was kept by a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# From slots [M, D] to the NLL of each image [B] and to what else is wanted of the decoder.
Scorer = Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]


class Score(NamedTuple):
    """The likelihood of a batch.

    Attributes:
        nll: mean over the batch in nats; differentiable with respect to slots and weights.
        nll_per_image: [B], detached.
        gradient: d nll / d slots, [M, D], detached; None if not asked for.
        outputs: the scorer's other results, detached.
    """

    nll: Tensor
    nll_per_image: Tensor
    gradient: Tensor | None
    outputs: tuple[Tensor, ...]


class _ScoreOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scorer: Scorer, slots: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            slots = slots.detach().requires_grad_()
            nll, outputs = scorer(slots)
            gradients = torch.autograd.grad(nll.mean(), (slots, *weights), allow_unused=True)
        ctx.save_for_backward(*gradients)
        results = (nll.detach(), gradients[0], *(o.detach() for o in outputs))
        ctx.mark_non_differentiable(*results)
        return nll.detach().mean(), *results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(g if g is None else grad_nll * g for g in ctx.saved_tensors)


def score_once(scorer: Scorer, slots: Tensor, weights: Sequence[Tensor], gradient: bool) -> Score:
    """Decode and score slots, keeping gradients but no activations.

    Args:
        scorer: decodes and scores.
        slots: [M, D].
        weights: the parameters that the scorer uses and that are to be trained.
        gradient: whether d nll / d slots is wanted (always there when something is trained).

    Returns:
        The score; its `nll` back-propagates to `slots` and `weights`.
    """
    if not gradient and not torch.is_grad_enabled():
        nll, outputs = scorer(slots)
        return Score(nll.mean(), nll, None, outputs)
    mean, per_image, slots_gradient, *outputs = _ScoreOnce.apply(scorer, slots, *weights)
    return Score(mean, per_image, slots_gradient, tuple(outputs))
