"""IODINE (Greff et al., ICML 2019): slots refined from scratch by iterative variational inference.

Legend: B batch, K slots, M = B * K, D slot width, I refinement steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emorl.models.base import Decomposition, ObjectCentricModel, Objective, Request, Stage
from emorl.models.iodine.config import IODINEConfig
from emorl.models.iodine.initialisation import init_fan_in
from emorl.models.iodine.inputs import AuthorsInputs, DeepMindInputs
from emorl.models.iodine.likelihood import likelihood_and_gradient, mixture_likelihood
from emorl.models.iodine.refinement import ImageRefinement, State
from emorl.models.iodine.score_decoded import Repeatable, repeatable, score_decoded
from emorl.models.terms import numbered
from emorl.nn.networks import SpatialBroadcastDecoder, shared_by_slots
from emorl.nn.posterior import (
    Gaussian,
    Score,
    ScoredPosterior,
    kl_divergence,
    loss_gradient,
    refinable,
    score_once,
)
from emorl.ops.library import full_precision, recordable


class SoftplusGaussian(Gaussian):
    """Diagonal Gaussians with variance softplus(raw), as in DeepMind's IODINE."""

    @property
    def scale(self) -> Tensor:
        """Standard deviation, [M, D]."""
        return F.softplus(self.raw).sqrt()


class IODINE(ObjectCentricModel):
    """Iterative object decomposition inference network.

    All slots of an image start from one learned posterior. A decoder explains the image with a
    sample of it; from the result, pixel by pixel, and the gradient of the loss a refinement network
    updates each slot's posterior; and so on.

    Gradients flow through the decoded means and masks into the decoder, also where they are inputs
    of the refinement network; through gradients and per-pixel likelihoods of the image they do not,
    in both published codes. The activations of one pass through one network are in memory at a
    time: decoder and refinement network run once more in the backward pass (`score_decoded`).

    Both forms were published with the plain evidence lower bound; the authors' code also has GECO.
    One sample is drawn per decoded image. The terms are "nll_0".. "nll_I" and "kl_0".. "kl_I", the
    stages "start", "refinement 1".. .
    """

    name: ClassVar[str] = "iodine"
    Config = IODINEConfig
    refines = takes_geco = True
    initial_draws = 1
    config: IODINEConfig

    def __init__(self, config: IODINEConfig | None = None) -> None:
        c = config or IODINEConfig()
        super().__init__(c)
        constants = 0 if c.decoder_constant is None else 1
        self.decoder = SpatialBroadcastDecoder(
            c.slot_dim + constants,
            c.decoder,
            c.image_size,
            gain=c.init_gain,
            backend=c.backend,
            convolution_backend=c.convolution_backend,
        )
        if c.init_gain is None:
            init_fan_in(self.decoder)
        self.inputs: AuthorsInputs | DeepMindInputs
        if c.inputs == "authors":
            self.inputs = AuthorsInputs(c.slot_dim, c.likelihood, c.sigma, c.image_size)
        else:
            self.inputs = DeepMindInputs(
                c.slot_dim, c.likelihood, c.sigma, c.image_size, c.coordinates
            )
        self.refinement = ImageRefinement(
            c.slot_dim,
            self.inputs.channels,
            self.inputs.width,
            c.refinement,
            c.image_size,
            gain=c.init_gain,
            # its first convolution, and those with a stride, have no native kernels on a CPU
            convolution_backend="reference" if c.convolution_backend == "reference" else "auto",
        )
        self.initial = nn.Parameter(torch.empty(1, 2 * c.slot_dim))  # mean and raw variance
        with torch.no_grad():
            if c.prior == "unit":
                mean, raw = self.initial.chunk(2, dim=1)
                mean.zero_(), raw.fill_(c.init_raw)
            else:  # TensorFlow's default for a vector
                bound = (1.5 / c.slot_dim) ** 0.5
                self.initial.uniform_(-bound, bound)

    @property
    def free_size(self) -> bool:  # type: ignore[override]
        """Whether the refinement network pools what is left of any image to one vector."""
        return self.config.pooling == "mean"

    def decode(self, slots: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Decode slots, each by itself; as the base's, but colours are past their activation."""
        target = slots.new_empty(len(slots), 3, *(size or self.config.image_size))
        return self._decode(target, slots.flatten(0, 1))

    def compose(self, decoded: Tensor, slots: Tensor) -> Decomposition:
        """The decomposition that decoded slots amount to; as the base's."""
        masks, components = decoded[:, :, 3:].softmax(dim=1), decoded[:, :, :3].clamp(0, 1)
        return Decomposition((masks * components).sum(dim=1), masks, components, slots)

    def _objective(self, request: Request) -> Objective:
        """The weighted sum of the losses of all I + 1 decoded images."""
        steps = self._infer(request)
        weights = [self._weight(i, request.refinement_steps) for i in range(len(steps))]
        norms = {i: step.update_norm for i, step in enumerate(steps)}
        return Objective(
            loss=request.loss(steps, weights),
            nll_per_image=steps[-1].score.nll_per_image,
            kl_per_image=steps[-1].kl.detach(),
            terms={
                **numbered("nll_{}", {i: s.score.nll_per_image for i, s in enumerate(steps)}),
                **numbered("kl_{}", {i: s.kl for i, s in enumerate(steps)}),
            },
            diagnostics=numbered("update_norm_{}", norms),
            decomposition=self._decomposition(steps[-1]),
        )

    def _decompose(self, request: Request) -> Decomposition:
        steps = self._infer(request)
        result = self._decomposition(steps[-1])
        if not request.details:
            return result
        names = ["start", *(f"refinement {i}" for i in range(1, len(steps)))]
        named = zip(names, map(self._decomposition, steps), strict=True)
        return replace(result, stages=tuple(Stage(*stage) for stage in named))

    def _infer(self, request: Request) -> list[ScoredPosterior]:
        """Score and refine in turn, I + 1 and I times (algorithm 1)."""
        learn = torch.is_grad_enabled()
        form = Gaussian if self.config.prior == "unit" else SoftplusGaussian
        with refinable(self.decoder, refined=True) as trained:
            request = request._replace(target=recordable(request.target))
            batch, steps = len(request.target), []
            shared = shared_by_slots(self.decoder, request.size)
            posterior = form.unpack(self.initial.expand(batch * request.num_slots, -1))
            prior = None if form is Gaussian else form(*map(torch.zeros_like, posterior))
            state: State | None = None
            norm: Tensor | None = None
            for step in range(request.refinement_steps + 1):
                if not (learn and posterior.mean.requires_grad):
                    posterior = form(*(x.detach().requires_grad_() for x in posterior))
                slots = posterior.sample(request.generator)
                kl = kl_divergence(posterior, prior).view(batch, -1).sum(1)
                with torch.set_grad_enabled(learn):
                    if step == request.refinement_steps:
                        score = self._score_last(slots, request, trained, shared)
                        steps.append(ScoredPosterior(score, kl, slots, norm))
                        break
                    score, code = self._score_and_encode(slots, request, trained, shared)
                steps.append(ScoredPosterior(score, kl, slots, norm))
                gradient = loss_gradient(posterior, steps[-1], request.descended)
                with torch.set_grad_enabled(learn):
                    vectors = self.inputs.vectors(posterior, gradient)
                    update, state = self.refinement(code, vectors, state)
                    posterior, norm = posterior.moved(update), update.norm()
        return steps

    def _score_and_encode(
        self,
        slots: Tensor,
        request: Request,
        trained: list[nn.Parameter] | None,
        shared: tuple[Tensor, ...],
    ) -> tuple[Score, Tensor]:
        """Score slots, and encode their images for the refinement network.

        Returns:
            The score, and the code of each slot, [M, code width].
        """
        batch = len(request.target)
        run_again = (self.decoder, self.inputs, self.refinement)
        keep = self.config.keep_activations or not repeatable(*run_again)
        scores, codes = [], []
        per_chunk = request.images_at_once(self.config.score_chunk) or batch
        parts = zip(
            request.target.split(per_chunk),
            slots.split(per_chunk * request.num_slots),
            strict=True,
        )
        for target, chunk in parts:
            decode, likelihood = partial(self._decode, target), partial(self._likelihood, target)
            scored = score_decoded(decode, likelihood, chunk, trained, batch, keep, shared)
            encode = partial(self._encode, target, weight=request.descended[0], batch=batch)
            if not keep:
                again = Repeatable(encode, target.device)
                encode = partial(checkpoint, again, use_reentrant=False, preserve_rng_state=False)
            codes.append(encode(scored.decoded, scored.decoded_gradient))
            scores.append(scored)
        nll, decoded, per_image, gradient, _ = zip(*scores, strict=True)
        images = _joined([x.detach() for x in decoded])
        score = Score(torch.stack(nll).sum(), _joined(per_image), _joined(gradient), images)
        return score, _joined(codes)

    def _score_last(
        self,
        slots: Tensor,
        request: Request,
        trained: list[nn.Parameter] | None,
        shared: tuple[Tensor, ...],
    ) -> Score:
        """Score the last slots, whose images are not encoded."""
        target = request.target
        return score_once(
            lambda z, images, *shared: self._decode(target[images], z, *shared),
            lambda decoded, images, scale: self._likelihood(target[images], decoded, scale),
            slots,
            trained,
            batch=len(target),
            gradient=False,
            images_at_once=request.images_at_once(self.config.score_chunk),
            shared=shared,
        )

    def _decode(self, target: Tensor, slots: Tensor, *shared: Tensor) -> Tensor:
        """Means and mask logits of the slots of some images, [images, K, 4, H, W]."""
        c = self.config
        if c.decoder_constant is not None:
            slots = F.pad(slots, (0, 1), value=c.decoder_constant)
        size = target.shape[2], target.shape[3]
        decoded = self.decoder(slots, size, *shared).to(target.dtype)
        if c.rgb_activation == "sigmoid":
            decoded = torch.cat([decoded[:, :3].sigmoid(), decoded[:, 3:]], dim=1)
        images: Tensor = decoded.unflatten(0, (len(target), -1))
        return images

    def _likelihood(
        self, target: Tensor, decoded: Tensor, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """NLL of each image and, with a scale, the gradient of scale times their sum."""
        c = self.config
        if scale is None:
            return mixture_likelihood(target, decoded, c.likelihood, c.sigma, c.backend), None
        return likelihood_and_gradient(target, decoded, c.likelihood, c.sigma, c.backend, scale)

    def _encode(
        self, target: Tensor, decoded: Tensor, gradient: Tensor, weight: float | Tensor, batch: int
    ) -> Tensor:
        """The code of each slot; `gradient` is that of the mean NLL, which the loss weights."""
        with full_precision(decoded):
            inputs = self.inputs(target, decoded, weight * gradient, weight / batch)
        return self.refinement.encode(inputs)

    def _decomposition(self, step: ScoredPosterior) -> Decomposition:
        decoded = step.score.decoded
        assert decoded is not None  # IODINE keeps every step's images
        return self.compose(decoded, step.slots.detach().unflatten(0, decoded.shape[:2]))

    def _weight(self, step: int, total: int) -> float:
        """Weight of a step's loss."""
        if self.config.step_weights == "fractions":
            return (step + 1) / (total + 1)
        return step / total if total else 1.0


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts])
