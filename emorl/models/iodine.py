"""IODINE (Greff et al., ICML 2019): slots refined from scratch by iterative variational inference.

Legend: B batch, K slots, M = B * K, D slot width, I refinement steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emorl.models.base import Decomposition, Objective, Stage
from emorl.models.iodine_config import IODINEConfig
from emorl.models.refined import RefinedModel, Request
from emorl.nn.decoder import SpatialBroadcastDecoder
from emorl.nn.gaussian import Gaussian, SoftplusGaussian, kl_divergence
from emorl.nn.image_refinement import ImageRefinement, State
from emorl.nn.initialisation import init_fan_in
from emorl.nn.likelihood import likelihood_and_gradient, mixture_likelihood
from emorl.nn.noise import share_of
from emorl.nn.pixel_inputs import AuthorsInputs, DeepMindInputs
from emorl.nn.precision import full_precision
from emorl.nn.refinement import ScoredPosterior, loss_gradient
from emorl.nn.score import Score, frozen, score_once
from emorl.nn.score_decoded import score_decoded


class _Inference(NamedTuple):
    steps: list[ScoredPosterior]


class IODINE(RefinedModel):
    """Iterative object decomposition inference network.

    All slots of an image start from one learned posterior. A decoder explains the image with a
    sample of it, a refinement network looks at the result, slot by slot and pixel by pixel, and at
    the gradient of the loss, and updates the posterior; and so on.

    Gradients flow through the decoded means and masks into the decoder, also where the refinement
    network looks at them; through gradients and per-pixel likelihoods of the image they do not, in
    both published codes. The activations of one pass through one network are in memory at a time:
    decoder and refinement network run once more in the backward pass (`emorl.nn.score_decoded`).

    Both forms were published with the plain evidence lower bound; the authors' code also has GECO.
    One sample is drawn per decoded image. The KL terms are "kl_0".. "kl_I".
    """

    name: ClassVar[str] = "iodine"
    Config: ClassVar[type] = IODINEConfig
    config: IODINEConfig

    def __init__(self, config: IODINEConfig | None = None) -> None:
        c = config or IODINEConfig()
        super().__init__(c)
        constants = 0 if c.decoder_constant is None else 1
        self.decoder = SpatialBroadcastDecoder(
            c.slot_dim + constants,
            c.decoder,
            c.image_size,
            c.init_gain,
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
            c.init_gain,
        )
        self.initial = nn.Parameter(torch.empty(1, 2 * c.slot_dim))  # mean and raw variance
        with torch.no_grad():
            if c.prior == "unit":
                mean, raw = self.initial.chunk(2, dim=1)
                mean.zero_(), raw.fill_(c.init_raw)
            else:  # TensorFlow's default for a vector
                bound = (1.5 / c.slot_dim) ** 0.5
                self.initial.uniform_(-bound, bound)

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        *,
        num_slots: int | None = None,
        refinement_steps: int | None = None,
        generator: torch.Generator | None = None,
        details: bool = False,
    ) -> Decomposition:
        """Decompose images, refining with the loss weights the model was trained with.

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W].
            num_slots: K; None for the configuration's.
            refinement_steps: I; None for the configuration's.
            generator: of all noise; None for the global one.
            details: fill `stages` ("start", "refinement 1", ..).

        Returns:
            The decomposition of one sample from the last posterior, without a graph.

        Raises:
            ValueError: for images or numbers that are not possible, saying which are.
        """
        weights = self.loss_weights.unbind()
        request = self._request(images, num_slots, refinement_steps, weights, generator)
        steps = self._infer(request).steps
        result = _decomposition(steps[-1])
        if details:
            names = ["start", *(f"refinement {i}" for i in range(1, len(steps)))]
            named = zip(names, map(_decomposition, steps), strict=True)
            result = replace(result, stages=tuple(Stage(*stage) for stage in named))
        return result

    def _request(self, *arguments: Any) -> Request:
        request = super()._request(*arguments)
        c = self.config
        if c.pooling == "flatten" and request.size != c.image_size:
            raise ValueError(
                f'images: expected {c.image_size}, the only size with pooling "flatten", '
                f"got {request.size}"
            )
        _, shares = share_of(request.generator)  # the loss of the whole batch is descended
        return request._replace(weights=[weight / shares for weight in request.weights])

    def _infer(self, request: Request) -> _Inference:
        """Score and refine in turn, I + 1 and I times.

        Without gradients, the small graph between a posterior and its loss is still made.
        """
        if torch.is_grad_enabled():
            return self._iterate(request, learn=True)
        with torch.inference_mode(False), torch.enable_grad(), frozen(self.decoder.parameters()):
            return self._iterate(request._replace(target=request.target.clone()), learn=False)

    def _iterate(self, request: Request, learn: bool) -> _Inference:
        batch, steps = len(request.target), []
        form = Gaussian if self.config.prior == "unit" else SoftplusGaussian
        posterior = form.unpack(self.initial.expand(batch * request.num_slots, -1))
        prior = None if form is Gaussian else form(*map(torch.zeros_like, posterior))
        state: State | None = None
        norm: Tensor | None = None
        for step in range(request.steps + 1):
            if not (learn and posterior.mean.requires_grad):
                posterior = form(*(x.detach().requires_grad_() for x in posterior))
            slots = posterior.sample(request.generator)
            kl = kl_divergence(posterior, prior).view(batch, -1).sum(1)
            with torch.set_grad_enabled(learn):
                if step == request.steps:
                    steps.append(ScoredPosterior(self._score_last(slots, request), kl, slots, norm))
                    break
                score, code = self._score_and_look(slots, request)
            scored = ScoredPosterior(score, kl, slots, norm)
            gradient = loss_gradient(posterior, scored, request.weights)
            with torch.set_grad_enabled(learn):
                vectors = self.inputs.vectors(posterior, gradient)
                update, state = self.refinement(code, vectors, state)
                posterior = form(posterior.mean + update.mean, posterior.raw + update.raw)
            norm = update.packed().norm(dim=1).mean()
            steps.append(scored)
        return _Inference(steps)

    def _score_and_look(self, slots: Tensor, request: Request) -> tuple[Score, Tensor]:
        """Score slots and encode what the refinement network sees of their images.

        Returns:
            The score, and the code of each slot, [M, code width].
        """
        batch, weights, keep = len(request.target), self._trained(), self.config.keep_activations
        per_chunk, scores, codes = self._images_at_once(request), [], []
        parts = zip(
            request.target.split(per_chunk),
            slots.split(per_chunk * request.num_slots),
            strict=True,
        )
        for target, some in parts:
            decode, likelihood = partial(self._decode, target), partial(self._likelihood, target)
            scored = score_decoded(decode, likelihood, some, weights, batch, keep)
            look = partial(self._look, target, weight=request.weights[0], batch=batch)
            if not keep:
                look = partial(checkpoint, look, use_reentrant=False, preserve_rng_state=False)
            codes.append(look(scored.decoded, scored.decoded_gradient))
            scores.append(scored)
        nll, decoded, per_image, gradient, _ = zip(*scores, strict=True)
        images = _joined([x.detach() for x in decoded])
        score = Score(torch.stack(nll).sum(), _joined(per_image), _joined(gradient), images)
        return score, _joined(codes)

    def _score_last(self, slots: Tensor, request: Request) -> Score:
        """Score slots whose images nothing else looks at."""
        target = request.target

        return score_once(
            lambda some, part: self._decode(target[part], some),
            lambda decoded, part, scale: self._likelihood(target[part], decoded, scale),
            slots,
            self._trained(),
            False,
            len(target),
            self._images_at_once(request),
        )

    def _trained(self) -> list[nn.Parameter]:
        """The decoder's weights, if there is something to learn."""
        wanted = torch.is_grad_enabled()
        return [p for p in self.decoder.parameters() if wanted and p.requires_grad]

    def _images_at_once(self, request: Request) -> int:
        chunk = self.config.score_chunk
        return len(request.target) if chunk is None else max(1, chunk // request.num_slots)

    def _decode(self, target: Tensor, slots: Tensor) -> Tensor:
        """Means and mask logits of the slots of some images, [images, K, 4, H, W]."""
        c = self.config
        if c.decoder_constant is not None:
            slots = F.pad(slots, (0, 1), value=c.decoder_constant)
        decoded = self.decoder(slots, (target.shape[2], target.shape[3])).to(target.dtype)
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

    def _look(
        self, target: Tensor, decoded: Tensor, gradient: Tensor, weight: float | Tensor, batch: int
    ) -> Tensor:
        """The code of each slot; `gradient` is that of the mean NLL, which the loss weights."""
        with full_precision(decoded):
            seen = self.inputs.images(target, decoded, weight * gradient, weight / batch)
        return self.refinement.encode(seen)

    def _weight(self, step: int, total: int) -> float:
        """Weight of a step's loss."""
        if self.config.step_weights == "fractions":
            return (step + 1) / (total + 1)
        return step / total if total else 1.0

    def _report(self, losses: list[Tensor], inference: _Inference) -> Objective:
        steps, total = inference.steps, len(losses) - 1
        terms = {f"nll_{i}": s.score.nll_per_image for i, s in enumerate(steps)}
        terms |= {f"kl_{i}": s.kl.detach() for i, s in enumerate(steps)}
        norms = {f"update_norm_{i}": s.update_norm for i, s in enumerate(steps)}
        return Objective(
            loss=torch.stack([self._weight(i, total) * x for i, x in enumerate(losses)]).sum(),
            nll=steps[-1].score.nll.detach(),
            kl=steps[-1].kl.mean().detach(),
            terms=terms,
            diagnostics={name: norm.detach() for name, norm in norms.items() if norm is not None},
            decomposition=_decomposition(steps[-1]),
        )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts])


def _decomposition(step: ScoredPosterior) -> Decomposition:
    decoded = step.score.decoded
    assert decoded is not None  # IODINE keeps every step's images
    masks, components = decoded[:, :, 3:].softmax(dim=1), decoded[:, :, :3].clamp(0, 1)
    slots = step.slots.detach().unflatten(0, decoded.shape[:2])
    return Decomposition((masks * components).sum(dim=1), masks, components, slots)
