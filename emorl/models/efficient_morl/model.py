"""EfficientMORL (Emami et al., ICML 2021): hierarchical slots, briefly refined.

Legend: B batch, K slots, M = B * K, D slot width, L stochastic layers, I refinement steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from emorl.models.base import Decomposition, ObjectCentricModel, Objective, Request, Stage
from emorl.models.efficient_morl.config import EfficientMORLConfig
from emorl.models.efficient_morl.hierarchy import (
    HierarchicalPosterior,
    HierarchicalPrior,
    Hierarchy,
)
from emorl.models.efficient_morl.refinement import RefinementNetwork
from emorl.models.terms import numbered
from emorl.nn.decoders import make_decoder
from emorl.nn.networks import ImageEncoder, LinearFeatures, shared_by_slots
from emorl.nn.posterior import (
    ScoredPosterior,
    kl_divergence,
    loss_gradient,
    refinable,
    score_once,
)
from emorl.ops import mixture_nll, mixture_nll_and_gradient
from emorl.ops.library import recordable


class _Inference(NamedTuple):
    hierarchy: Hierarchy
    kl_layers: list[Tensor]  # [M] each
    steps: list[ScoredPosterior]  # before refinement, and after each of its steps


class EfficientMORL(ObjectCentricModel):
    """Efficient multi-object iterative amortised inference.

    A bottom-up pass of L stochastic slot attention layers gives a posterior over slots; I steps of
    refinement improve it by its loss gradient; a decoder explains the image with the slots. The
    objective is equation 8, or with GECO that of appendix F.2.

    Noise is drawn in the released code's order: initial slots, one sample per layer, the prior's
    conditioning samples, one sample per refinement step. The terms are "nll_0".. "nll_I",
    "kl_layer_1".. and "kl_refinement_1".. . An objective's `kl` is the last step's: the sum over
    layers for I = 0, the refined posterior's alone for I > 0, as the released code prints it.
    Stages are "layer 1".. and "refinement 1".. .
    """

    name: ClassVar[str] = "efficient_morl"
    Config = EfficientMORLConfig
    refines = takes_geco = True
    initial_draws = 1
    config: EfficientMORLConfig

    def __init__(self, config: EfficientMORLConfig | None = None) -> None:
        c = config or EfficientMORLConfig()
        super().__init__(c)
        self.encoder = ImageEncoder(
            c.encoder_channels,
            c.encoder_layers,
            c.image_size,
            gain=c.init_gain,
            convolution_backend=c.convolution_backend,
        )
        self.posterior = HierarchicalPosterior(
            c.encoder_channels,
            c.slot_dim,
            c.stochastic_layers,
            c.gru,
            gain=c.init_gain,
            raw_bias=c.init_raw_bias,
            backend=c.backend,
        )
        self.prior = HierarchicalPrior(c.slot_dim, c.prior)
        self.refinement = RefinementNetwork(c.slot_dim)
        self.decoder = make_decoder(
            c.decoder,
            c.slot_dim,
            c.image_size,
            channels=c.decoder_channels,
            activation=c.decoder_activation,
            gain=c.init_gain,
            position_gain=c.init_position_gain,
            backend=c.backend,
            convolution_backend=c.convolution_backend,
        )

    def decode(self, slots: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Decode slots, each by itself; as the base's."""
        images: Tensor = self.decoder(slots.flatten(0, 1), size or self.config.image_size)
        return images.unflatten(0, slots.shape[:2])

    def _objective(self, request: Request) -> Objective:
        """Equation 8: the weighted sum of the losses of all I + 1 decoded images.

        The weights are the released code's, or the paper's: `refinement_weighting`.
        """
        _, kl_layers, steps = self._infer(request)
        weights = [self._weight(i, request.refinement_steps) for i in range(len(steps))]
        batch, refined = len(request.target), range(1, len(steps))
        layers = {n: kl.view(batch, -1).sum(1) for n, kl in enumerate(kl_layers, 1)}
        return Objective(
            loss=request.loss(steps, weights),
            nll_per_image=steps[-1].score.nll_per_image,
            kl_per_image=steps[-1].kl.detach(),
            terms={
                **numbered("nll_{}", {i: s.score.nll_per_image for i, s in enumerate(steps)}),
                **numbered("kl_layer_{}", layers),
                **numbered("kl_refinement_{}", {i: steps[i].kl for i in refined}),
            },
            diagnostics=numbered(
                "update_norm_{}", {i: step.update_norm for i, step in enumerate(steps)}
            ),
            decomposition=_decomposition(steps[-1]),
        )

    def _infer(self, request: Request) -> _Inference:
        """Both stages: infer the hierarchy (section 3.1), refine its last posterior (3.2)."""
        features = self.encoder(2 * request.target - 1)
        learn = torch.is_grad_enabled()
        # Refinement takes gradients also where nothing is trained, and in the inference mode.
        with refinable(self.decoder, refined=request.refinement_steps > 0) as trained:
            features = features._replace(hidden=recordable(features.hidden))
            request = request._replace(target=recordable(request.target))
            shared = shared_by_slots(self.decoder, request.size)
            hierarchy = self._hierarchy(features, request)
            layers = hierarchy.posteriors if self.config.stochastic_layers else []
            kl_layers, prior = self.prior(layers, request.generator)
            posterior, slots = hierarchy.posteriors[-1], hierarchy.samples[-1]
            kl = sum(kl_layers, torch.zeros_like(slots[:, 0]))
            state, norm, steps = None, None, []
            for step in range(request.refinement_steps + 1):
                last = step == request.refinement_steps
                with torch.set_grad_enabled(learn or not last):
                    steps.append(self._score(slots, kl, norm, request, trained, shared, last))
                if last:
                    break
                gradient = loss_gradient(posterior, steps[-1], request.descended)
                update, state = self.refinement(posterior, gradient, state)
                posterior, norm = posterior.moved(update), update.norm()
                slots = posterior.sample(request.generator)
                kl = kl_divergence(posterior, prior)
        return _Inference(hierarchy, kl_layers, steps)

    def _hierarchy(self, features: LinearFeatures, request: Request) -> Hierarchy:
        hierarchy: Hierarchy = self.posterior(
            features, request.num_slots, request.generator, request.details
        )
        return hierarchy

    def _score(
        self,
        slots: Tensor,
        kl: Tensor,
        norm: Tensor | None,
        request: Request,
        trained: list[nn.Parameter] | None,
        shared: tuple[Tensor, ...],
        last: bool,
    ) -> ScoredPosterior:
        """Decode a sample and score it; the last image is kept, with `details` every one."""
        target = request.target
        score = score_once(
            lambda z, images, *shared: self._decode(z, target[images], *shared),
            lambda decoded, images, scale: self._likelihood(decoded, target[images], scale),
            slots,
            trained,
            batch=len(target),
            gradient=not last,
            images_at_once=request.images_at_once(self.config.score_chunk),
            shared=shared,
        )
        if not (last or request.details):
            score = score._replace(decoded=None)
        return ScoredPosterior(score, kl.view(len(target), -1).sum(1), slots, norm)

    def _decode(self, slots: Tensor, target: Tensor, *shared: Tensor) -> Tensor:
        """Colours and mask logits of the slots of some images, [images, K, 4, H, W]."""
        images: Tensor = self.decoder(slots, (target.shape[2], target.shape[3]), *shared)
        return images.unflatten(0, (len(target), -1))

    def _likelihood(
        self, decoded: Tensor, target: Tensor, scale: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """NLL of each image and, with a scale, the gradient of scale times their sum."""
        c = self.config
        if scale is None:
            nll = mixture_nll(target, decoded, sigma=c.sigma, kind=c.likelihood, backend=c.backend)
            return nll, None
        return mixture_nll_and_gradient(
            target, decoded, scale=scale, sigma=c.sigma, kind=c.likelihood, backend=c.backend
        )

    def _weight(self, step: int, total: int) -> float:
        """Weight of a step's loss; the released code's are flatter than the paper's."""
        if self.config.refinement_weighting == "released":
            return (total + 3 - step) / (total + 1)
        return 1.0 if step == 0 else (total + 1 - step) / (total + 1)

    def _decompose(self, request: Request) -> Decomposition:
        target, refined = request.target, []
        if request.refinement_steps == 0:
            hierarchy = self._hierarchy(self.encoder(2 * target - 1), request)
            result = self._decomposition(hierarchy.samples[-1], target)
        else:
            hierarchy, _, steps = self._infer(request)
            refined = [_decomposition(s) for s in (steps[1:] if request.details else steps[-1:])]
            result = refined[-1]
        if not request.details:
            return result
        samples = hierarchy.samples if self.config.stochastic_layers else []
        layers = [self._decomposition(slots, target) for slots in samples]
        attention = hierarchy.attention
        return replace(
            result,
            attention=torch.stack(attention, 1).unflatten(-1, request.size) if attention else None,
            stages=(
                *(Stage(f"layer {n}", layer) for n, layer in enumerate(layers, 1)),
                *(Stage(f"refinement {i}", step) for i, step in enumerate(refined, 1)),
            ),
        )

    def _decomposition(self, slots: Tensor, target: Tensor) -> Decomposition:
        decoded = self._decode(slots, target)
        return Decomposition.assemble(decoded, slots.unflatten(0, decoded.shape[:2]))


def _decomposition(step: ScoredPosterior) -> Decomposition:
    decoded = step.score.decoded
    assert decoded is not None  # the last step's images are always kept
    slots = step.slots.detach().unflatten(0, decoded.shape[:2])
    return Decomposition.assemble(decoded, slots)
