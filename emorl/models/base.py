"""The interface of all models: requests, decompositions and objectives.

Legend: B batch, K slots, D slot width, L attention layers, H W image, I refinement steps.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, SupportsIndex

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from emorl.fields import shown
from emorl.memory import require_slots
from emorl.models import pretrained
from emorl.models.config import ModelConfig
from emorl.models.geco import GECO
from emorl.nn.posterior import BatchNoise, ScoredPosterior, Weight, share_of
from emorl.ops.library import mapped, transformed, with_mapped

_LARGEST = torch.finfo(torch.float32).max  # that a loss in float32 can be weighted by


@dataclass
class Stage:
    """An intermediate decomposition: a stochastic layer's or a refinement step's."""

    name: str
    decomposition: Decomposition


@dataclass
class Decomposition:
    """An image explained as a mixture of K slots.

    Attributes:
        reconstruction: sum of the masked components, [B, 3, H, W] in [0, 1].
        masks: probability that a pixel belongs to each slot, [B, K, 1, H, W], sums to 1 over K.
        components: each slot's appearance, [B, K, 3, H, W] in [0, 1].
        slots: latent codes, [B, K, D].
        attention: softmax over slots of each attention layer, [B, L, K, H, W], if requested.
        stages: the intermediate decompositions, first layer first, if requested.
    """

    reconstruction: Tensor
    masks: Tensor
    components: Tensor
    slots: Tensor
    attention: Tensor | None = None
    stages: tuple[Stage, ...] = ()

    @classmethod
    def assemble(cls, decoded: Tensor, slots: Tensor) -> Self:
        """Assemble the decomposition from a decoder's output.

        Args:
            decoded: appearance before its sigmoid and mask logits, [B, K, 4, H, W]; the results
                have its dtype, but at least float32.
            slots: [B, K, D].
        """
        decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
        masks, components = decoded[:, :, 3:].softmax(dim=1), decoded[:, :, :3].sigmoid()
        return cls((masks * components).sum(dim=1), masks, components, slots)

    def labels(self) -> Tensor:
        """The most probable slot of each pixel, int64 [B, H, W]."""
        return self.masks[:, :, 0].argmax(dim=1)


for _result in (Stage, Decomposition):  # so that models can be exported
    torch.export.register_dataclass(_result, serialized_type_name=f"emorl.{_result.__name__}")


@dataclass
class Objective:
    """The training loss of a batch and its terms.

    Attributes:
        loss: scalar to differentiate.
        nll_per_image: negative log-likelihood of the last step, [B], in nats, detached; the
            squared error of a model that has no likelihood.
        kl_per_image: Kullback-Leibler term of the last step, [B], in nats, detached; 0 without one.
        terms: every term of the loss, name -> [B], detached; `emorl.models.terms` explains them.
        decomposition: the last step's, detached.
        diagnostics: other scalars to log, detached.
    """

    loss: Tensor
    nll_per_image: Tensor
    kl_per_image: Tensor
    terms: dict[str, Tensor]
    decomposition: Decomposition
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def nll(self) -> Tensor:
        """Mean of `nll_per_image` over the batch."""
        return self.nll_per_image.mean()

    @property
    def kl(self) -> Tensor:
        """Mean of `kl_per_image` over the batch."""
        return self.kl_per_image.mean()


class Request(NamedTuple):
    """Checked arguments of `objective`, `score` or `forward`, with all defaults filled in.

    Attributes:
        target: images, [B, 3, H, W] in [0, 1].
        num_slots: K.
        refinement_steps: I; 0 for a model that does not refine.
        iterations: T; 0 for a model that does not iterate.
        nll_weight: of the negative log-likelihood in the loss.
        kl_weight: of the KL terms.
        constraint: takes the place of the weighted likelihood; None for none.
        generator: of all noise; None for the global one.
        details: whether to return attention and the intermediate decompositions.
    """

    target: Tensor
    num_slots: int
    refinement_steps: int
    iterations: int
    nll_weight: Weight
    kl_weight: Weight
    constraint: GECO | None
    generator: torch.Generator | None
    details: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.target.shape[2], self.target.shape[3]

    @property
    def descended(self) -> tuple[Weight, Weight]:
        """Weights of NLL and KL in the loss that refinement descends, by `share_of`."""
        _, shares = share_of(self.generator)
        return self.nll_weight / shares, self.kl_weight / shares

    def images_at_once(self, slots: int | None) -> int | None:
        """How many images have at most so many slots, at least one; None for no bound."""
        return None if slots is None else max(1, slots // self.num_slots)

    def loss(self, steps: Sequence[ScoredPosterior], weights: Sequence[float]) -> Tensor:
        """The weighted sum of the losses of all decoded images.

        Each is the weighted NLL, or GECO's constraint on it, plus the weighted KL.
        """
        losses = []
        for weight, step in zip(weights, steps, strict=True):
            nll, kl = step.score.nll, self.kl_weight * step.kl.mean()
            if self.constraint is None:
                losses.append(weight * (self.nll_weight * nll + kl))
            else:
                losses.append(weight * (self.constraint.penalty(nll, self.target[0].numel()) + kl))
        return torch.stack(losses).sum()


class ObjectCentricModel(nn.Module, ABC):
    """Base of all models: the interface for training, evaluation and benchmarks.

    A model declares by its attributes what it supports, and implements `_objective` and
    `_decompose`. All its noise is `emorl.nn.standard_normal`'s, and whatever else depends on the
    size of the batch asks `emorl.nn.share_of`, so that a batch can be shared out: the mean over
    its shares is then the loss of the whole, and so are the gradients.

    Attributes:
        name: of the model, in configurations and folders.
        Config: its configuration.
        refines: whether it takes `refinement_steps`.
        iterates: whether it takes `iterations`.
        has_kl: whether its loss has KL terms, so that it takes `kl_weight`.
        takes_geco: whether its likelihood can be constrained by a `GECO`.
        initial_draws: draws of noise that start the slots; all later ones are samples of
            posteriors, whose means can be taken instead (`emorl.evaluation.ImageNoise`).
        free_slots: whether another number of slots than the configuration's is possible.
        free_size: whether another image size is.
    """

    name: ClassVar[str]
    Config: ClassVar[type[ModelConfig]]
    refines: ClassVar[bool] = False
    iterates: ClassVar[bool] = False
    has_kl: ClassVar[bool] = True
    takes_geco: ClassVar[bool] = False
    initial_draws: ClassVar[int] = 0
    free_slots: bool = True
    free_size: bool = True
    loss_weights: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if self.refines:
            # Of NLL and KL in the last trained loss: refinement was trained on its gradient.
            self.register_buffer("loss_weights", torch.ones(2))

    def objective(
        self,
        images: Tensor,
        *,
        geco: GECO | None = None,
        step: int | None = None,
        kl_weight: float = 1.0,
        refinement_steps: int | None = None,
        iterations: int | None = None,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Objective:
        """The training loss of images.

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W].
            geco: constrains the reconstruction; None for the plain evidence lower bound.
            step: training step; `geco` stays out while it is in its warm start. None: past it.
            kl_weight: beta, weight of the KL terms; 0 also disables `geco`.
            refinement_steps: I; None for the configuration's.
            iterations: T; None for the configuration's.
            num_slots: K; None for the configuration's.
            generator: of all noise, each draw as [B * K, D]; None for the global one. A plain one
                draws for the whole batch, and refinement descends the batch's mean loss, so that
                an image's numbers depend on its batch; not with `emorl.evaluation.ImageNoise`.

        Raises:
            ValueError: for images that are not possible and arguments that this model does not
                support, saying what is expected.
        """
        if not _is_number(kl_weight) or not 0 <= kl_weight <= _LARGEST:
            raise ValueError(
                f"kl_weight: expected a number from 0 to {_LARGEST:.3g}, got {shown(kl_weight)}"
            )
        if step is not None and not (_is_number(step) and isinstance(step, Integral)):
            raise ValueError(f"step: expected a whole number or None, got {shown(step)}")
        if kl_weight != 1 and not self.has_kl:
            raise ValueError(f"kl_weight: {self.name} has no KL term, expected 1, got {kl_weight}")
        if geco is not None and not isinstance(geco, GECO):
            raise ValueError(f"geco: expected a GECO or None, got {type(geco).__name__} {geco}")
        if geco is not None and not self.takes_geco:
            reason = "is trained without a constraint" if self.has_kl else "has no KL term"
            raise ValueError(f"geco: {self.name} {reason}, expected None, got a GECO")
        constraint = geco if geco is not None and kl_weight and geco.active(step) else None
        weights = (constraint.multiplier if constraint else 1.0, kl_weight)
        request = self._request(images, num_slots, refinement_steps, iterations, generator)
        if self.refines and self.training and torch.is_grad_enabled():
            for kept, weight in zip(self.loss_weights, weights, strict=True):
                kept.fill_(weight)
        return self._objective(
            request._replace(nll_weight=weights[0], kl_weight=weights[1], constraint=constraint)
        )

    @torch.no_grad()
    def score(
        self,
        images: Tensor,
        *,
        refinement_steps: int | None = None,
        iterations: int | None = None,
        num_slots: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Objective:
        """How well the model explains images: every term of the loss, without a graph.

        Refines with the loss weights that the model was trained with; `loss` is the weighted sum
        without a constraint. Arguments and errors as `objective`'s.
        """
        return self._objective(
            self._request(images, num_slots, refinement_steps, iterations, generator)
        )

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        *,
        num_slots: int | None = None,
        refinement_steps: int | None = None,
        iterations: int | None = None,
        generator: torch.Generator | None = None,
        details: bool = False,
    ) -> Decomposition:
        """Decompose images.

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W].
            num_slots: K; None for the configuration's.
            refinement_steps: I; None for the configuration's. 0 computes no loss and no gradient.
            iterations: T; None for the configuration's.
            generator: as `objective`'s.
            details: fill `attention` and `stages` with what the model has of them.

        Returns:
            The decomposition of one sample, without a graph.

        Raises:
            ValueError: as `objective`.
        """
        request = self._request(images, num_slots, refinement_steps, iterations, generator)
        return self._decompose(request._replace(details=details))

    def decode(self, slots: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Decode slots, each by itself.

        Args:
            slots: [B, K, D], such as a decomposition's, or changed ones.
            size: height and width; None for the configuration's.

        Returns:
            Colours before their activation and mask logits, [B, K, 4, H, W], for `compose`.
        """
        raise NotImplementedError(f"{self.name} does not decode slots by themselves")

    def compose(self, decoded: Tensor, slots: Tensor) -> Decomposition:
        """The decomposition that decoded slots amount to.

        Args:
            decoded: of `decode`, [B, K, 4, H, W].
            slots: [B, K, D].
        """
        return Decomposition.assemble(decoded, slots)

    @abstractmethod
    def _objective(self, request: Request) -> Objective:
        """The loss and its terms."""

    @abstractmethod
    def _decompose(self, request: Request) -> Decomposition:
        """The decomposition, without gradients."""

    def _request(
        self,
        images: Tensor,
        num_slots: int | None,
        refinement_steps: int | None,
        iterations: int | None,
        generator: torch.Generator | None,
    ) -> Request:
        """The request, with the configuration's numbers and the trained loss weights filled in."""
        weight = next(self.parameters())
        target = checked_images(images, weight.dtype)
        if target.device != weight.device:
            raise ValueError(
                f"images: expected {weight.device}, where the model is, got {target.device}"
            )
        size, expected = tuple(target.shape[2:]), self.config.image_size
        if self.refines and (mapped() or transformed()):
            raise ValueError(
                f"{self.name} takes gradients of its own: expected a batch [B, 3, H, W], and "
                "torch.autograd for derivatives, got a transform of torch.func"
            )
        if self.refines and _is_differentiated(images):
            raise ValueError(
                f"images: {self.name} is not differentiated with respect to them, expected "
                "images.detach(), got images that require gradients"
            )
        if size != expected and not self.free_size:
            raise ValueError(
                f"images: size fixed by the network, expected {expected[0]}x{expected[1]}, "
                f"got {size[0]}x{size[1]}"
            )
        nll_weight, kl_weight = self.loss_weights.unbind() if self.refines else (1.0, 1.0)
        slots = self._count("num_slots", num_slots, least=1)
        if slots != self.config.num_slots and not self.free_slots:
            raise ValueError(
                f"num_slots: fixed by the network, expected {self.config.num_slots}, got {slots}"
            )
        if num_slots is not None and not torch.compiler.is_compiling():
            require_slots(slots, self.config.image_size)
        _require_generator(generator, len(target))
        return Request(
            target,
            slots,
            self._count("refinement_steps", refinement_steps, least=0, taken=self.refines),
            self._count("iterations", iterations, least=1, taken=self.iterates),
            nll_weight,
            kl_weight,
            constraint=None,
            generator=generator,
        )

    def _count(self, name: str, value: int | None, *, least: int, taken: bool = True) -> int:
        """A requested number, else the configuration's; 0 where the model has none."""
        if not taken and value is not None:
            raise ValueError(f"{name}: {self.name} has none, expected None, got {value}")
        if not taken:
            return 0
        count = getattr(self.config, name) if value is None else value
        if not isinstance(count, SupportsIndex) or isinstance(count, bool):
            raise ValueError(f"{name}: expected a whole number, got {count}")
        count = operator.index(count)
        if count < least:
            raise ValueError(f"{name}: expected {least} or more, got {count}")
        return count

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration, weights and their checksums into `folder`, made if needed.

        Raises:
            ValueError: if the folder is a run's checkpoint.
        """
        pretrained.save(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, allow_non_finite: bool = False) -> Self:
        """Load what `save_pretrained` wrote.

        Args:
            folder: the model's folder, a checkpoint, or the name of a trained model that comes
                along: "tetrominoes-laptop", "efficient_morl/tetrominoes-laptop".
            allow_non_finite: take weights that are infinite or not a number.

        Raises:
            ValueError: if the folder is not one of this model's, a file is not as it was written,
                or a weight is not finite; with the reason.
        """
        return pretrained.load(cls, folder, allow_non_finite=allow_non_finite)


def checked_images(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images as a model's input, [B, 3, H, W] of `dtype` in [0, 1].

    Raises:
        ValueError: if they are neither uint8 nor in [0, 1], not of that shape, or mapped by
            `torch.vmap` in a compiled graph, which has no rule for the check.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"images: expected a tensor [B, 3, H, W], got {type(images).__name__}")
    if mapped() and torch.compiler.is_compiling():
        raise ValueError(
            "images: expected a batch [B, 3, H, W] in a compiled graph, got images mapped by "
            "torch.vmap"
        )
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images: expected [B, 3, H, W], got {[*images.shape]}")
    if not images.numel():
        raise ValueError(f"images: expected one or more, with pixels, got {[*images.shape]}")
    if images.dtype == torch.uint8:
        return images.to(dtype) / 255
    if not images.is_floating_point() or images.dtype.itemsize < 2:
        raise ValueError(f"images: expected uint8 or a float in [0, 1], got {images.dtype}")
    _require_in_range(images)
    return images.to(dtype)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _require_generator(generator: object, batch: int) -> None:
    """Refuse what is no generator, and one of other images than the batch's."""
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator: expected a torch.Generator or None, got {shown(generator)}")
    own = generator.images if isinstance(generator, BatchNoise) else None
    if own is not None and own != batch:
        raise ValueError(f"generator: expected noise for {batch} images, got noise for {own}")


def _is_differentiated(images: Tensor) -> bool:
    """Whether a derivative with respect to images is wanted, by either mode."""
    backward = images.requires_grad and torch.is_grad_enabled()
    return backward or forward_ad.unpack_dual(images).tangent is not None


def _require_in_range(images: Tensor) -> None:
    """Refuse a value outside [0, 1] or NaN.

    On a GPU and in a compiled graph the check does not wait for the device, and stops the program
    there.
    """
    message = "images: expected floats in [0, 1]"
    images = images if torch.compiler.is_compiling() else with_mapped(images)
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (float(bound) for bound in images.detach().aminmax())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(f"{message}, got [{low:g}, {high:g}]")
    else:
        torch._assert_async(((images >= 0) & (images <= 1)).all(), message)
