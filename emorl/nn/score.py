"""Score once: an image's likelihood given its slots, differentiated a single time.

A refined loss needs d NLL / d slots at once, for the next update, and the decoder's gradients at
the end, for the optimiser. The final loss is linear in each NLL, and an NLL depends on the decoder
only through its slots and weights: so both gradients are taken together, right after scoring, all
activations are freed, and the final backward merely multiplies what was kept by a number. For the
same reason images can be scored a few at a time, with the activations of those few alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emorl.nn.precision import full_precision

# From the slots of some images, [images * K, D], and which images these are, to the NLL of each
# image and to what else is wanted of the decoder.
Scorer = Callable[[Tensor, slice], tuple[Tensor, tuple[Tensor, ...]]]


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
    def forward(
        ctx: Any, scorer: Scorer, parts: Sequence[slice], slots: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        batch, results = parts[-1].stop, []
        sums: list[Tensor | None] = [None] * len(weights)
        for some, part in zip(_split(slots, parts), parts, strict=True):
            with torch.enable_grad():
                leaf = some.detach().requires_grad_()
                nll, outputs = scorer(leaf, part)
                with full_precision(nll):
                    gradient, *others = torch.autograd.grad(
                        nll.sum() / batch, (leaf, *weights), allow_unused=True
                    )
            results.append((nll.detach(), gradient, *(o.detach() for o in outputs)))
            sums = [g if s is None else s + g for s, g in zip(sums, others, strict=True)]
        joined = _join(results)
        ctx.save_for_backward(joined[1], *sums)
        ctx.mark_non_differentiable(*joined)
        return joined[0].mean(), *joined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(g if g is None else grad_nll * g for g in ctx.saved_tensors)


def score_once(
    scorer: Scorer,
    slots: Tensor,
    weights: Sequence[Tensor],
    gradient: bool,
    batch: int,
    images_at_once: int | None = None,
) -> Score:
    """Decode and score slots, keeping gradients but no activations.

    Args:
        scorer: decodes and scores.
        slots: [M, D], those of an image one after the other.
        weights: the parameters that the scorer uses and that are to be trained.
        gradient: whether d nll / d slots is wanted (always there when something is trained).
        batch: number of images.
        images_at_once: how many images are scored together; None for all.

    Returns:
        The score; its `nll` back-propagates to `slots` and `weights`.
    """
    step = images_at_once or batch
    parts = [slice(first, min(first + step, batch)) for first in range(0, batch, step)]
    if not gradient and not torch.is_grad_enabled():
        scored = [
            scorer(some, part) for some, part in zip(_split(slots, parts), parts, strict=True)
        ]
        nll, *outputs = _join([(nll, *others) for nll, others in scored])
        return Score(nll.mean(), nll, None, tuple(outputs))
    mean, nll, slots_gradient, *outputs = _ScoreOnce.apply(scorer, parts, slots, *weights)
    return Score(mean, nll, slots_gradient, tuple(outputs))


@contextmanager
def frozen(weights: Iterable[Tensor]) -> Iterator[None]:
    """A context in which weights need no gradients.

    For differentiating a score with respect to its slots alone: custom operators compute the
    gradients of weights that need some even where `torch.autograd.grad` was not asked for them.
    """
    trained = [weight for weight in weights if weight.requires_grad]
    try:
        for weight in trained:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def _split(slots: Tensor, parts: Sequence[slice]) -> list[Tensor]:
    per_image = len(slots) // parts[-1].stop
    return [slots[part.start * per_image : part.stop * per_image] for part in parts]


def _join(results: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """The results of all parts, each in one tensor."""
    return [x[0] if len(x) == 1 else torch.cat(x) for x in zip(*results, strict=True)]
