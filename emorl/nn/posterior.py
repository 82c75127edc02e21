"""Posteriors over slots: the noise of a batch, diagonal Gaussians, and the score of a sample.

Score once: a refined loss needs d NLL / d slots at once, for the next update, and the decoder's
gradients at the end, for the optimiser. The final loss is linear in each NLL, and an NLL depends on
the decoder only through its slots and weights: so both gradients are taken together, right after
scoring, all activations are freed, and the final backward merely multiplies what was kept by a
number. For the same reason images can be scored a few at a time, with the activations of those few
alive.

Legend: B batch, K slots, M = B * K, D slot width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from emorl.ops.library import full_precision, transformed

Weight = float | Tensor  # a tensor without dimensions where it lies on a device
# decode(slots [b * K, D], images, *shared) -> decoded, for the b images that the slice selects
Decode = Callable[..., Tensor]
# likelihood(decoded, images, scale) -> (NLL [b], gradient of scale * sum(NLL) by `decoded`);
# without a scale the gradient is None, and the NLL is differentiable instead
Likelihood = Callable[[Tensor, slice, float | None], tuple[Tensor, Tensor | None]]


class BatchNoise(torch.Generator):
    """The base of generators that know what their images are to a batch.

    Attributes:
        index: of the images among such shares, 0 to shares - 1.
        shares: that make up the batch whose mean loss refinement descends; below 1 where the
            images are several batches.
        images: how many it has noise for; None for any number.
    """

    index: int = 0
    shares: float = 1
    images: int | None = None

    def standard_normal(self, like: Tensor) -> Tensor:
        """The next noise of these images; see the function of this name."""
        raise NotImplementedError


class BatchShare(BatchNoise):
    """The generator of one of several equal shares of a batch, in the batch's order.

    Every share draws the noise of the whole batch and keeps its own, and refinement descends the
    whole batch's mean. So a batch gives the same numbers, up to rounding, in one process, in
    several with a share each, or in parts one after the other.
    """

    shares: int = 1

    def standard_normal(self, like: Tensor) -> Tensor:
        """The share's part of the batch's next noise."""
        shape = (self.shares * len(like), *like.shape[1:])
        return _randn(shape, like, self).chunk(self.shares)[self.index]


def share_of(generator: torch.Generator | None) -> tuple[int, float]:
    """Index and number of shares; one share, the whole batch, unless the generator says more."""
    return (generator.index, generator.shares) if isinstance(generator, BatchNoise) else (0, 1)


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `like`.

    Args:
        like: [B, ...] or [B * K, ...], those of an image one after the other.
        generator: of the noise; None for the global one.
    """
    if generator is None:
        return _randn(like.shape, like, None)
    return _drawn(like, generator)


# The compiler cannot look into generators. `torch.compiler.disable` would import it at once.
@torch._disable_dynamo  # type: ignore[attr-defined]
def _drawn(like: Tensor, generator: torch.Generator) -> Tensor:
    if isinstance(generator, BatchNoise):
        return generator.standard_normal(like)
    return _randn(like.shape, like, generator)


def _randn(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def seed_for(*parts: int | str) -> int:
    """A seed for `torch.Generator.manual_seed`, a pure function of `parts`.

    Training seeds its noise with `seed_for("noise", seed, step)` at every step, so that a
    checkpoint needs no generator's state and a resumed run draws what an undisturbed one draws.

    Returns:
        A number in [0, 2**63).
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Gaussian(NamedTuple):
    """Diagonal Gaussians with variance softplus(raw) + 1e-5.

    Attributes:
        mean: [M, D].
        raw: [M, D], unconstrained; clamped at 80 from above, as in the released code.
    """

    mean: Tensor
    raw: Tensor

    @property
    def scale(self) -> Tensor:
        """Standard deviation, [M, D]."""
        return (F.softplus(self.raw.clamp(max=80.0)) + 1e-5).sqrt()

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """A reparameterised sample, [M, D]."""
        return torch.addcmul(self.mean, self.scale, standard_normal(self.mean, generator))

    def packed(self) -> Tensor:
        """Mean and raw variance side by side, [M, 2D]: the paper's lambda."""
        return torch.cat([self.mean, self.raw], dim=1)

    def moved(self, update: Gaussian) -> Self:
        """These parameters plus those of `update`."""
        return type(self)(self.mean + update.mean, self.raw + update.raw)

    def norm(self) -> Tensor:
        """Mean over slots of the norm of the parameters."""
        return self.packed().norm(dim=1).mean()

    @classmethod
    def unpack(cls, parameters: Tensor) -> Self:
        """The inverse of `packed`."""
        return cls(*parameters.chunk(2, dim=1))


def kl_divergence(posterior: Gaussian, prior: Gaussian | None) -> Tensor:
    """KL(posterior || prior) in nats, summed over D.

    Args:
        posterior: [M, D].
        prior: [M, D], or None for the standard normal.

    Returns:
        [M].
    """
    scale = posterior.scale
    if prior is None:
        terms = scale.square() + posterior.mean.square() - 1 - 2 * scale.log()
    else:
        ratio = (scale / prior.scale).square()
        distance = ((posterior.mean - prior.mean) / prior.scale).square()
        terms = ratio + distance - 1 - ratio.log()
    return 0.5 * terms.sum(dim=1)


class Score(NamedTuple):
    """The likelihood of a batch.

    Attributes:
        nll: mean over the batch in nats; differentiable with respect to slots and weights.
        nll_per_image: [B], detached.
        gradient: d nll / d slots, [M, D], detached; None if not requested.
        decoded: the decoder's output, detached; None where it is not needed any more.
    """

    nll: Tensor
    nll_per_image: Tensor
    gradient: Tensor | None
    decoded: Tensor | None


class _ScoreOnce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        decode: Decode,
        likelihood: Likelihood,
        parts: Sequence[slice],
        num_shared: int,
        learn: bool,
        slots: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        batch, results = parts[-1].stop, []
        shared, weights = leaves(inputs[:num_shared]), inputs[num_shared:]
        sums: list[Tensor | None] = [None] * len(inputs)
        for chunk, part in zip(_split(slots, parts), parts, strict=True):
            with torch.enable_grad():
                leaf = chunk.detach().requires_grad_()
                decoded = decode(leaf, part, *shared)
            if learn:
                require_known(decoded, (leaf, *shared, *weights))
            nll, of_decoded = likelihood(decoded.detach(), part, 1 / batch)
            with full_precision(nll):
                gradient, *others = gradients(decoded, (leaf, *shared, *weights), of_decoded)
            results.append((nll, gradient, decoded.detach()))
            sums = [g if s is None else s + g for s, g in zip(sums, others, strict=True)]
        joined = _join(results)
        ctx.save_for_backward(joined[1], *sums)
        ctx.mark_non_differentiable(*joined)
        return joined[0].mean(), *joined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        kept = (g if g is None else grad_nll * g for g in ctx.saved_tensors)
        return None, None, None, None, None, *kept


def score_once(
    decode: Decode,
    likelihood: Likelihood,
    slots: Tensor,
    weights: Sequence[Tensor] | None,
    *,
    batch: int,
    gradient: bool,
    images_at_once: int | None = None,
    shared: Sequence[Tensor] = (),
) -> Score:
    """Decode and score slots, keeping gradients but no activations.

    Args:
        decode: from slots to what is scored.
        likelihood: from that to NLLs; called with 1 / batch where gradients are wanted.
        slots: [M, D], those of an image one after the other.
        weights: the parameters that `decode` uses and that are to be trained; None where nothing
            is trained.
        batch: number of images.
        gradient: whether d nll / d slots is wanted (always there when something is trained).
        images_at_once: how many images are scored together; None for all.
        shared: what `decode` takes after its images, computed once for all of them.

    Returns:
        The score; its `nll` back-propagates to `slots`, `weights` and `shared`.

    Raises:
        ValueError: Where derivatives of another kind are taken, or `decode` uses something else
            that requires gradients: they would be cut.
    """
    step = images_at_once or batch
    parts = [slice(first, min(first + step, batch)) for first in range(0, batch, step)]
    if not gradient and not torch.is_grad_enabled():
        chunks = zip(_split(slots, parts), parts, strict=True)
        images = [decode(z, part, *shared) for z, part in chunks]
        values = [likelihood(x, part, None)[0] for x, part in zip(images, parts, strict=True)]
        nll, decoded = _join(list(zip(values, images, strict=True)))
        return Score(nll.mean(), nll, None, decoded)
    if transformed() or forward_ad._current_level >= 0:
        raise ValueError(
            "score_once: expected derivatives by torch.autograd's backward alone, got one of "
            "torch.func or of forward mode"
        )
    inputs = (slots, *shared, *(weights or ()))
    learn = weights is not None
    return Score(*_ScoreOnce.apply(decode, likelihood, parts, len(shared), learn, *inputs))


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors without the graph behind them, differentiable as they were."""
    return [x.detach().requires_grad_(x.requires_grad) for x in tensors]


def gradients(output: Tensor, inputs: Sequence[Tensor], seed: Tensor | None) -> list[Any]:
    """The gradient of each input, None where it requires none or is not used."""
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, seed, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in inputs]


class ScoredPosterior(NamedTuple):
    """A posterior's loss: that of the hierarchy's last layer, or of a refinement step.

    Attributes:
        score: the likelihood of a sample.
        kl: to the prior, [B].
        slots: the sample, [M, D].
        update_norm: mean over slots of the norm of the update that led here; None at first.
    """

    score: Score
    kl: Tensor
    slots: Tensor
    update_norm: Tensor | None = None


def loss_gradient(
    posterior: Gaussian, scored: ScoredPosterior, weights: tuple[Weight, Weight]
) -> Gaussian:
    """Gradient of the loss with respect to the posterior's mean and raw variance.

    Its part through the decoder is known already: d nll / d slots.

    Args:
        posterior: [M, D].
        scored: its score.
        weights: of NLL and KL, means over the batch, in the loss.
    """
    assert scored.score.gradient is not None
    outputs, seeds = [scored.slots], [weights[0] * scored.score.gradient]
    if scored.kl.requires_grad:  # without stochastic layers the first KL is constant
        outputs.append(scored.kl)
        seeds.append(torch.ones_like(scored.kl) * (weights[1] / len(scored.kl)))
    with full_precision(scored.kl):
        gradient = torch.autograd.grad(outputs, [*posterior], seeds, retain_graph=True)
    return Gaussian(*gradient)


@contextmanager
def refinable(decoder: nn.Module, refined: bool) -> Iterator[list[nn.Parameter] | None]:
    """A context in which posteriors can be refined, whether or not anything is trained.

    Where gradients are off, the small graph between a posterior and its loss is still made, and
    the decoder's weights are left out of it.

    Args:
        decoder: of the slots.
        refined: whether there are refinement steps; without them gradients may stay off.

    Yields:
        The decoder's weights that are to be trained; None where gradients are off.
    """
    trained = [weight for weight in decoder.parameters() if weight.requires_grad]
    if torch.is_grad_enabled() or not refined:
        yield trained
    else:
        with torch.inference_mode(False), torch.enable_grad(), frozen(trained):
            yield None


@contextmanager
def frozen(weights: Iterable[Tensor]) -> Iterator[None]:
    """A context in which weights need no gradients.

    For differentiating a score with respect to its slots alone: a custom operator computes the
    gradient of every weight that requires one, also where `torch.autograd.grad` does not return it.
    What is computed from other tensors cannot be frozen, and stays as it is.
    """
    trained = [weight for weight in weights if weight.requires_grad and weight.is_leaf]
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


def require_known(output: Tensor, known: Sequence[Tensor]) -> None:
    """Hold a result to what it may be differentiated by.

    Args:
        output: whose graph is looked at.
        known: where its graph may end; what is behind these is no matter.

    Raises:
        ValueError: if it ends in another tensor that requires gradients.
    """
    own = {id(x) for x in known if x.is_leaf}
    # As of PyTorch 2.13 a node is one object in Python for as long as something holds it.
    ends = {(x.grad_fn, x.output_nr) for x in known if not x.is_leaf}
    seen: set[Any] = {None}
    ahead: list[Any] = [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = None if node.next_functions else getattr(node, "variable", None)
        if variable is not None and id(variable) not in own:
            raise ValueError(
                "decoder: expected gradients for its own parameters alone, got a tensor "
                f"{[*variable.shape]} of elsewhere that requires gradients: register it as a "
                "parameter of the decoder, or detach it"
            )
        ahead += [edge[0] for edge in node.next_functions if edge not in ends]
