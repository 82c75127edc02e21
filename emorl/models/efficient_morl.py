"""EfficientMORL (Emami et al., ICML 2021): hierarchical slots, briefly refined.

Legend: B batch, K slots, M = B * K, D slot width, L stochastic layers, I refinement steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from emorl.models.base import Decomposition, ObjectCentricModel, Objective, Stage
from emorl.nn.decoder import make_decoder
from emorl.nn.encoder import ImageEncoder
from emorl.nn.gaussian import Gaussian, kl_divergence
from emorl.nn.hierarchy import PRIORS, HierarchicalPosterior, HierarchicalPrior, Hierarchy
from emorl.nn.refinement import RefinementNetwork
from emorl.nn.score import Score, score_once
from emorl.ops.mixture_nll import KINDS, mixture_nll
from emorl.training.objective import GECO

WEIGHTINGS = ("released", "paper")


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
        backend: of the fused ops, "auto", "native" or "reference".
    """

    image_size: tuple[int, int] = (64, 64)
    num_slots: int = 4
    slot_dim: int = 64
    stochastic_layers: int = 3
    refinement_steps: int = 3
    encoder_channels: int = 64
    encoder_layers: int = 4
    decoder: str = "iodine"
    decoder_channels: int | None = None
    decoder_activation: str | None = None
    likelihood: str = "gaussian"
    sigma: float = 0.1
    prior: str = "reversed++"
    gru: str = "dual"
    refinement_weighting: str = "released"
    backend: str = "auto"

    def __post_init__(self) -> None:
        self.image_size = tuple(self.image_size)  # type: ignore[assignment]  # JSON has lists
        if len(self.image_size) != 2:
            raise ValueError(f"image_size: expected (height, width), got {self.image_size}")
        choices = {
            "likelihood": KINDS,
            "prior": PRIORS,
            "gru": ("dual", "single"),
            "refinement_weighting": WEIGHTINGS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {[*allowed]}, got {getattr(self, name)!r}")
        for name in ("num_slots", "slot_dim", "encoder_channels", "encoder_layers", "sigma"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("stochastic_layers", "refinement_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class _Step(NamedTuple):
    """A scored posterior: the hierarchy's last layer (step 0) or a refinement step's."""

    score: Score
    kl: Tensor  # [B]
    slots: Tensor  # [B, K, D]
    update: Gaussian | None = None


class _Inference(NamedTuple):
    hierarchy: Hierarchy
    kl_layers: list[Tensor]  # [B] each
    steps: list[_Step]


class EfficientMORL(ObjectCentricModel):
    """Efficient multi-object iterative amortised inference.

    A bottom-up pass of L stochastic slot attention layers gives a posterior over slots; I steps of
    refinement improve it by its loss gradient; a decoder explains the image with the slots.
    """

    name: ClassVar[str] = "efficient_morl"
    Config: ClassVar[type] = EfficientMORLConfig
    config: EfficientMORLConfig
    loss_weights: Tensor

    def __init__(self, config: EfficientMORLConfig | None = None) -> None:
        c = config or EfficientMORLConfig()
        super().__init__(c)
        self.encoder = ImageEncoder(c.encoder_channels, c.encoder_layers, c.image_size)
        self.posterior = HierarchicalPosterior(
            c.encoder_channels, c.slot_dim, c.stochastic_layers, c.gru, c.backend
        )
        self.prior = HierarchicalPrior(c.slot_dim, c.prior)
        self.refinement = RefinementNetwork(c.slot_dim)
        self.decoder = make_decoder(
            c.decoder, c.slot_dim, c.image_size, c.decoder_channels, c.decoder_activation
        )
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
        """The training loss (equation 8, or with `geco` appendix F.2).

        Noise is drawn in the released code's order: initial slots, one sample per layer, the
        prior's conditioning samples, one sample per refinement step; each as [B * K, D].

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W].
            geco: constrains the reconstruction; None for the plain evidence lower bound.
            step: training step; `geco` stays out while it is in its warm start. None: past it.
            kl_weight: beta, weight of the KL terms; 0 also disables `geco`.
            refinement_steps: I; None for the configuration's.
            num_slots: K; None for the configuration's.
            generator: of all noise; None for the global one.

        Returns:
            Loss, terms "nll_0".. "nll_I", "kl_layer_1".., "kl_refinement_1".., and the last
            decomposition. `kl` is the last step's: the sum over layers for I = 0, the refined
            posterior's alone for I > 0, as the released code prints it.

        Raises:
            ValueError: for images or numbers that are not possible, saying which are.
        """
        target, count, total = self._checked(images, num_slots, refinement_steps)
        constrained = geco is not None and kl_weight != 0 and geco.active(step)
        weights = (geco.multiplier if geco is not None and constrained else 1.0, kl_weight)
        if self.training and torch.is_grad_enabled():
            self.loss_weights.copy_(torch.tensor(weights))
        inference = self._infer(target, count, total, weights, generator)
        loss = target.new_zeros(())
        for i, step_ in enumerate(inference.steps):
            nll = step_.score.nll
            if geco is not None and constrained:
                nll = geco.penalty(nll, target[0].numel())
            loss = loss + self._weight(i, total) * (nll + kl_weight * step_.kl.mean())
        return self._report(loss, inference)

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
        target, count, total = self._checked(images, num_slots, refinement_steps)
        nll_weight, kl_weight = self.loss_weights.tolist()
        inference = self._infer(target, count, total, (nll_weight, kl_weight), generator)
        loss = target.new_zeros(())
        for i, step in enumerate(inference.steps):
            value = nll_weight * step.score.nll + kl_weight * step.kl.mean()
            loss = loss + self._weight(i, total) * value
        return self._report(loss, inference)

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
        target, count, total = self._checked(images, num_slots, refinement_steps)
        size = (target.shape[2], target.shape[3])
        steps: list[_Step] = []
        if total == 0:
            features = self.encoder(2 * target - 1)
            hierarchy = self.posterior(features, count, generator, details)
            result = self._decode(hierarchy.samples[-1], count, size)
        else:
            weights = self.loss_weights.tolist()
            hierarchy, _, steps = self._infer(target, count, total, weights, generator, details)
            result = _decomposition(steps[-1])
        if details:
            layers = hierarchy.samples if self.config.stochastic_layers else []
            decoded = [self._decode(slots, count, size) for slots in layers]
            refined = [_decomposition(step) for step in steps[1:]]
            result.stages = (
                *(Stage(f"layer {n}", layer) for n, layer in enumerate(decoded, 1)),
                *(Stage(f"refinement {i}", step) for i, step in enumerate(refined, 1)),
            )
            if hierarchy.attention:
                result.attention = torch.stack(hierarchy.attention, dim=1).unflatten(-1, size)
        return result

    def _infer(
        self,
        target: Tensor,
        num_slots: int,
        total: int,
        weights: Sequence[float],
        generator: torch.Generator | None,
        details: bool = False,
    ) -> _Inference:
        """Infer the hierarchy, then refine and score its last posterior `total` times.

        Without gradients the decoder's weights are left out; refinement still differentiates with
        respect to the posterior, through the small graph between a posterior and its loss.
        """
        features = self.encoder(2 * target - 1)
        if torch.is_grad_enabled() or total == 0:
            trained = [p for p in self.decoder.parameters() if p.requires_grad]
            return self._refine(
                features, target, num_slots, total, weights, generator, details, trained
            )
        with torch.inference_mode(False), torch.enable_grad():
            features, target = features.clone(), target.clone()
            return self._refine(features, target, num_slots, total, weights, generator, details, [])

    def _refine(
        self,
        features: Tensor,
        target: Tensor,
        num_slots: int,
        total: int,
        weights: Sequence[float],
        generator: torch.Generator | None,
        details: bool,
        trained: list[nn.Parameter],
    ) -> _Inference:
        batch = len(target)

        def score(slots: Tensor, kl: Tensor, i: int, update: Gaussian | None = None) -> _Step:
            scored = score_once(
                lambda z: self._likelihood(z, target), slots, trained, gradient=i < total
            )
            if i < total and not details:  # only the last image is looked at
                scored = scored._replace(outputs=())
            return _Step(scored, kl, slots.view(batch, num_slots, -1), update)

        hierarchy = self.posterior(features, num_slots, generator, details)
        layers = hierarchy.posteriors if self.config.stochastic_layers else []
        divergences, prior = self.prior(layers, generator)
        kl_layers = [k.view(batch, num_slots).sum(1) for k in divergences]
        kl = sum(kl_layers, target.new_zeros(batch))
        steps = [score(hierarchy.samples[-1], kl, 0)]
        posterior = hierarchy.posteriors[-1]
        state = self.refinement.initial_state(posterior)
        for i in range(1, total + 1):
            gradient = _loss_gradient(posterior, steps[-1], weights)
            update, state = self.refinement(posterior, gradient, state)
            posterior = Gaussian(posterior.mean + update.mean, posterior.raw + update.raw)
            slots = posterior.sample(generator)
            kl = kl_divergence(posterior, prior).view(batch, num_slots).sum(1)
            steps.append(score(slots, kl, i, update))
        return _Inference(hierarchy, kl_layers, steps)

    def _likelihood(self, slots: Tensor, target: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        rgb, mask = self.decoder(slots, (target.shape[2], target.shape[3]))
        rgb, mask = (x.unflatten(0, (len(target), -1)) for x in (rgb, mask))
        c = self.config
        nll = mixture_nll(target, rgb, mask, sigma=c.sigma, kind=c.likelihood)
        return nll, (rgb, mask)

    def _decode(self, slots: Tensor, num_slots: int, size: tuple[int, int]) -> Decomposition:
        rgb, mask = self.decoder(slots, size)
        rgb, mask, slots = (x.unflatten(0, (-1, num_slots)) for x in (rgb, mask, slots))
        return _assemble(rgb, mask, slots)

    def _weight(self, i: int, total: int) -> float:
        """Weight of step i's loss; the released code's are flatter than the paper's."""
        if self.config.refinement_weighting == "released":
            return (total + 3 - i) / (total + 1)
        return 1.0 if i == 0 else (total + 1 - i) / (total + 1)

    def _report(self, loss: Tensor, inference: _Inference) -> Objective:
        steps = inference.steps
        terms = {f"nll_{i}": s.score.nll_per_image for i, s in enumerate(steps)}
        terms |= {f"kl_layer_{n}": kl for n, kl in enumerate(inference.kl_layers, 1)}
        terms |= {f"kl_refinement_{i}": s.kl for i, s in enumerate(steps[1:], 1)}
        norms = {
            f"update_norm_{i}": s.update.packed().norm(dim=1).mean().detach()
            for i, s in enumerate(steps)
            if s.update is not None
        }
        return Objective(
            loss=loss,
            nll=steps[-1].score.nll.detach(),
            kl=steps[-1].kl.mean().detach(),
            terms={name: value.detach() for name, value in terms.items()},
            diagnostics=norms,
            decomposition=_decomposition(steps[-1]),
        )

    def _checked(
        self, images: Tensor, num_slots: int | None, refinement_steps: int | None
    ) -> tuple[Tensor, int, int]:
        """Images as float in [0, 1], K and I, or a ValueError that says what is possible."""
        if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images: expected [B, 3, H, W], got {[*images.shape]}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images: expected uint8 or a float in [0, 1], got {images.dtype}")
        count = self.config.num_slots if num_slots is None else num_slots
        total = self.config.refinement_steps if refinement_steps is None else refinement_steps
        if count < 1:
            raise ValueError(f"num_slots: expected 1 or more, got {count}")
        if total < 0:
            raise ValueError(f"refinement_steps: expected 0 or more, got {total}")
        dtype = self.loss_weights.dtype
        return (images.to(dtype) / 255 if images.dtype == torch.uint8 else images), count, total


def _loss_gradient(posterior: Gaussian, step: _Step, weights: Sequence[float]) -> Gaussian:
    """Gradient of a step's loss, mean over the batch, with respect to its posterior.

    The part through the decoder is known already: d nll / d slots.
    """
    assert step.score.gradient is not None
    outputs, seeds = [step.slots], [weights[0] * step.score.gradient.view_as(step.slots)]
    if step.kl.requires_grad:
        outputs.append(step.kl)
        seeds.append(torch.full_like(step.kl, weights[1] / len(step.kl)))
    gradient = torch.autograd.grad(outputs, [*posterior], seeds, retain_graph=True)
    return Gaussian(*gradient)


def _decomposition(step: _Step) -> Decomposition:
    rgb, mask_logits = step.score.outputs
    return _assemble(rgb, mask_logits, step.slots.detach())


def _assemble(rgb: Tensor, mask_logits: Tensor, slots: Tensor) -> Decomposition:
    masks, components = mask_logits.softmax(dim=1), rgb.sigmoid()
    return Decomposition((masks * components).sum(1), masks, components, slots)
