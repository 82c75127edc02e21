"""EfficientMORL (Emami et al., ICML 2021): hierarchical slots, briefly refined.

Legend: B batch, K slots, M = B * K, D slot width, L stochastic layers, I refinement steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from emorl.models.base import (
    Decomposition,
    Objective,
    Stage,
    check_config,
)
from emorl.models.refined import RefinedModel, Request
from emorl.nn.absorption import LinearFeatures
from emorl.nn.decoder import Activation, DecoderKind, make_decoder
from emorl.nn.encoder import ImageEncoder
from emorl.nn.hierarchy import (
    GRUKind,
    HierarchicalPosterior,
    HierarchicalPrior,
    Hierarchy,
    PriorKind,
)
from emorl.nn.refinement import RefinementNetwork, ScoredPosterior, refine
from emorl.nn.score import frozen, score_once
from emorl.ops import Backend, mixture_nll, mixture_nll_and_gradient
from emorl.ops.mixture_nll import Likelihood


@dataclass
class EfficientMORLConfig:
    """Architecture and objective of EfficientMORL.

    Attributes:
        image_size: (height, width) in pixels; other sizes can be given at call time.
        num_slots: K; another number can be given at call time.
        slot_dim: D, width of a slot.
        stochastic_layers: L; 0 leaves refinement alone.
        refinement_steps: I; another number can be given at call time.
        encoder_channels: width of the image encoder.
        encoder_layers: number of the encoder's convolutions.
        decoder: "iodine", "small" or "big" (image sizes that are multiples of 16).
        decoder_channels: width of the decoder; null for the published one.
        decoder_activation: "elu" or "relu"; null for the published one.
        likelihood: "gaussian" or "mixture" (per channel).
        sigma: standard deviation of a pixel, in units of [0, 1].
        prior: "reversed++", "reversed" or "bottom_up".
        gru: "dual" or "single" (ablation).
        refinement_weighting: weights of the refined losses, "released" or "paper" (equation 8).
        init_gain: of the initial weights (Xavier normal) of encoder, decoder and attention
            projections; 0.02 as released, at which little is learnt for thousands of steps.
        init_position_gain: further gain of the decoder's initial position map. With 4, slots part
            from each other sooner.
        init_raw_bias: initial bias of every layer's raw variance; 0 as released, at which samples
            are mostly noise at first. -3 starts with a standard deviation of about 0.2.
        backend: of the fused operators, "auto", "native", "triton" or "reference".
        convolution_backend: of the convolutions: "auto" takes those with fewer multiplications
            where they win, on the CPU; "reference" rounds as PyTorch does.
        score_chunk: slots that are decoded and scored together, rounded down to those of whole
            images, at least one image; null takes the batch at once. The numbers stay the same,
            but the activations of one chunk alone are in memory.
    """

    image_size: tuple[int, int] = (64, 64)
    num_slots: int = 4
    slot_dim: int = 64
    stochastic_layers: int = 3
    refinement_steps: int = 3
    encoder_channels: int = 64
    encoder_layers: int = 4
    decoder: DecoderKind = "iodine"
    decoder_channels: int | None = None
    decoder_activation: Activation | None = None
    likelihood: Likelihood = "gaussian"
    sigma: float = 0.1
    prior: PriorKind = "reversed++"
    gru: GRUKind = "dual"
    refinement_weighting: Literal["released", "paper"] = "released"
    init_gain: float = 0.02
    init_position_gain: float = 1.0
    init_raw_bias: float = 0.0
    backend: Backend = "auto"
    convolution_backend: Backend = "auto"
    score_chunk: int | None = None

    def __post_init__(self) -> None:
        check_config(
            self,
            positive=(
                "num_slots",
                "slot_dim",
                "encoder_channels",
                "encoder_layers",
                "sigma",
                "init_gain",
                "init_position_gain",
                "score_chunk",
            ),
            not_negative=("stochastic_layers", "refinement_steps"),
        )


class _Inference(NamedTuple):
    hierarchy: Hierarchy
    kl_layers: list[Tensor]  # [B] each
    steps: list[ScoredPosterior]


class EfficientMORL(RefinedModel):
    """Efficient multi-object iterative amortised inference.

    A bottom-up pass of L stochastic slot attention layers gives a posterior over slots; I steps of
    refinement improve it by its loss gradient; a decoder explains the image with the slots. The
    objective is equation 8, or with GECO that of appendix F.2.

    Noise is drawn in the released code's order: initial slots, one sample per layer, the prior's
    conditioning samples, one sample per refinement step. The KL terms are "kl_layer_1".. and
    "kl_refinement_1".. . An objective's `kl` is the last step's: the sum over layers for I = 0, the
    refined posterior's alone for I > 0, as the released code prints it.
    """

    name: ClassVar[str] = "efficient_morl"
    Config: ClassVar[type] = EfficientMORLConfig
    config: EfficientMORLConfig

    def __init__(self, config: EfficientMORLConfig | None = None) -> None:
        c = config or EfficientMORLConfig()
        super().__init__(c)
        self.encoder = ImageEncoder(
            c.encoder_channels,
            c.encoder_layers,
            c.image_size,
            c.init_gain,
            c.convolution_backend,
        )
        self.posterior = HierarchicalPosterior(
            c.encoder_channels,
            c.slot_dim,
            c.stochastic_layers,
            c.gru,
            c.backend,
            c.init_gain,
            c.init_raw_bias,
        )
        self.prior = HierarchicalPrior(c.slot_dim, c.prior)
        self.refinement = RefinementNetwork(c.slot_dim)
        self.decoder = make_decoder(
            c.decoder,
            c.slot_dim,
            c.image_size,
            c.decoder_channels,
            c.decoder_activation,
            c.init_gain,
            c.init_position_gain,
            c.backend,
            c.convolution_backend,
        )

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
            refinement_steps: I; None for the configuration's. 0 computes no loss and no gradient.
            generator: of all noise; None for the global one.
            details: fill `attention` and `stages` ("layer 1", .., "refinement 1", ..).

        Returns:
            The decomposition of one sample from the last posterior, without a graph.

        Raises:
            ValueError: for images or numbers that are not possible, saying which are.
        """
        request = self._request(images, num_slots, refinement_steps, (), generator, details)
        if request.steps == 0:
            hierarchy, refined = self._hierarchy(self._features(request), request), []
            result = self._decode(hierarchy.samples[-1], request)
        else:
            weighted = request._replace(weights=self.loss_weights.unbind())
            hierarchy, _, steps = self._infer(weighted)
            refined = [_decomposition(step) for step in (steps[1:] if details else steps[-1:])]
            result = refined[-1]
        if details:
            layers = hierarchy.samples if self.config.stochastic_layers else []
            decoded = [self._decode(slots, request) for slots in layers]
            result = replace(
                result,
                stages=(
                    *(Stage(f"layer {n}", layer) for n, layer in enumerate(decoded, 1)),
                    *(Stage(f"refinement {i}", step) for i, step in enumerate(refined, 1)),
                ),
                attention=torch.stack(hierarchy.attention, dim=1).unflatten(-1, request.size)
                if hierarchy.attention
                else None,
            )
        return result

    def _features(self, request: Request) -> LinearFeatures:
        features: LinearFeatures = self.encoder(2 * request.target - 1)
        return features

    def _hierarchy(self, features: LinearFeatures, request: Request) -> Hierarchy:
        hierarchy: Hierarchy = self.posterior(
            features, request.num_slots, request.generator, request.details
        )
        return hierarchy

    def _infer(self, request: Request) -> _Inference:
        """Infer the hierarchy, then refine and score its last posterior.

        Without gradients the decoder's weights are left out; refinement still differentiates with
        respect to the posterior, through the small graph between a posterior and its loss.
        """
        features = self._features(request)
        if torch.is_grad_enabled() or request.steps == 0:
            trained = [p for p in self.decoder.parameters() if p.requires_grad]
            return self._two_stages(features, request, trained)
        with torch.inference_mode(False), torch.enable_grad(), frozen(self.decoder.parameters()):
            request = request._replace(target=request.target.clone())
            features = features._replace(hidden=features.hidden.clone())
            return self._two_stages(features, request, [])

    def _two_stages(
        self, features: LinearFeatures, request: Request, trained: list[nn.Parameter]
    ) -> _Inference:
        target, batch = request.target, len(request.target)

        def score(slots: Tensor, kl: Tensor, step: int) -> ScoredPosterior:
            last = step == request.steps
            scored = score_once(
                lambda z, images: self._decoded(z, target[images]),
                lambda decoded, images, scale: self._likelihood(decoded, target[images], scale),
                slots,
                trained,
                not last,
                batch,
                self._images_at_once(request.num_slots),
            )
            if not last and not request.details:  # nobody will look at this image
                scored = scored._replace(decoded=None)
            return ScoredPosterior(scored, kl.view(batch, -1).sum(1), slots)

        hierarchy = self._hierarchy(features, request)
        layers = hierarchy.posteriors if self.config.stochastic_layers else []
        divergences, prior = self.prior(layers, request.generator)
        kl = sum(divergences, target.new_zeros(batch * request.num_slots))
        steps = refine(
            self.refinement,
            hierarchy.posteriors[-1],
            prior,
            score(hierarchy.samples[-1], kl, 0),
            score,
            request.steps,
            request.weights,
            request.generator,
        )
        return _Inference(hierarchy, [k.view(batch, -1).sum(1) for k in divergences], steps)

    def _images_at_once(self, num_slots: int) -> int | None:
        chunk = self.config.score_chunk
        return None if chunk is None else max(1, chunk // num_slots)

    def _decoded(self, slots: Tensor, target: Tensor) -> Tensor:
        """Colours and mask logits of the slots of some images, [images, K, 4, H, W]."""
        images: Tensor = self.decoder(slots, (target.shape[2], target.shape[3]))
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

    def _decode(self, slots: Tensor, request: Request) -> Decomposition:
        decoded = self.decoder(slots, request.size)
        return Decomposition.assemble(
            *(x.unflatten(0, (-1, request.num_slots)) for x in (decoded, slots))
        )

    def _weight(self, step: int, total: int) -> float:
        """Weight of a step's loss; the released code's are flatter than the paper's."""
        if self.config.refinement_weighting == "released":
            return (total + 3 - step) / (total + 1)
        return 1.0 if step == 0 else (total + 1 - step) / (total + 1)

    def _report(self, losses: list[Tensor], inference: _Inference) -> Objective:
        steps, total = inference.steps, len(losses) - 1
        terms = {f"nll_{i}": s.score.nll_per_image for i, s in enumerate(steps)}
        terms |= {f"kl_layer_{n}": kl for n, kl in enumerate(inference.kl_layers, 1)}
        terms |= {f"kl_refinement_{i}": s.kl for i, s in enumerate(steps[1:], 1)}
        norms = {f"update_norm_{i}": s.update_norm for i, s in enumerate(steps[1:], 1)}
        return Objective(
            loss=torch.stack([self._weight(i, total) * x for i, x in enumerate(losses)]).sum(),
            nll=steps[-1].score.nll.detach(),
            kl=steps[-1].kl.mean().detach(),
            terms={name: value.detach() for name, value in terms.items()},
            diagnostics={name: norm.detach() for name, norm in norms.items() if norm is not None},
            decomposition=_decomposition(steps[-1]),
        )


def _decomposition(step: ScoredPosterior) -> Decomposition:
    decoded = step.score.decoded
    assert decoded is not None  # the last step's images are always kept
    slots = step.slots.detach().unflatten(0, decoded.shape[:2])
    return Decomposition.assemble(decoded, slots)
