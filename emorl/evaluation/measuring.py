"""Measuring a batch of images with a model, one sample of the noise after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from emorl.data import Batch, ObjectDataset
from emorl.devices import device_there
from emorl.evaluation.noise import ImageNoise
from emorl.evaluation.per_image import numbers_of
from emorl.fields import shown
from emorl.models import ObjectCentricModel

PerceptualMetric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Measurement:
    """What is measured, and how.

    Attributes:
        model: on `device`.
        dataset: the images.
        seeds: of the noise of each sample.
        means: whether slots are the means of their posteriors; else samples of them.
        whole: the images as they were before they were resized, with whose masks the model's are
            compared; None for the masks of `dataset`.
        refinement_steps: None for the model's own number.
        num_slots: None for the model's own number.
        device: where to compute.
        attention: whether to score attention maps as well.
        perceptual: a distance of images and reconstructions.
    """

    model: ObjectCentricModel
    dataset: ObjectDataset
    seeds: range
    means: bool
    whole: ObjectDataset | None
    refinement_steps: int | None
    num_slots: int | None
    device: torch.device
    attention: bool
    perceptual: PerceptualMetric | None

    def __post_init__(self) -> None:
        if self.perceptual is not None and not callable(self.perceptual):
            raise ValueError(
                "perceptual: expected a distance of images and reconstructions, got "
                f"{shown(self.perceptual)}"
            )

    def of(self, indices: range) -> dict[str, Tensor]:
        """Every number of these images, name -> float64 [samples, B] on the CPU."""
        batch = self.dataset.__getitems__(indices).to(self.device)
        drawn = []
        for seed in self.seeds:
            objective = self.model.score(
                batch.image,
                refinement_steps=self.refinement_steps,
                num_slots=self.num_slots,
                generator=self._noise(indices, seed),
            )
            numbers = numbers_of(
                batch,
                objective,
                attention=self._attention(batch.image, self._noise(indices, seed)),
                whole=None if self.whole is None else whole_label_maps(self.whole, indices),
                perceptual=self.perceptual,
            )
            drawn.append({name: x.cpu().double() for name, x in numbers.items()})
        return {name: torch.stack([numbers[name] for numbers in drawn]) for name in drawn[0]}

    def _noise(self, indices: range, seed: int) -> ImageNoise:
        return noise_for(self.model, indices, seed=seed, device=self.device, means=self.means)

    def _attention(self, images: Tensor, noise: ImageNoise) -> Tensor | None:
        """The last attention's maps [B, K, H, W]; refinement, which starts from them, has none."""
        if not self.attention:
            return None
        maps: Tensor | None = self.model(
            images,
            num_slots=self.num_slots,
            refinement_steps=0 if self.model.refines else None,
            generator=noise,
            details=True,
        ).attention
        return None if maps is None else maps[:, -1]


def require_subject(model: object, dataset: object) -> None:
    """Refuse what is no model, or no data set.

    Raises:
        ValueError: naming the argument.
    """
    for name, value, kind in (
        ("model", model, ObjectCentricModel),
        ("dataset", dataset, ObjectDataset),
    ):
        if not isinstance(value, kind):
            raise ValueError(
                f"{name}: expected an {kind.__name__}, got {type(value).__name__} {shown(value)}"
            )


def device_of(model: ObjectCentricModel, asked: torch.device | str | None) -> torch.device:
    """The device that is asked for, or that the model is on.

    Raises:
        ValueError: as `device_there`.
    """
    if asked is None:
        return next(model.parameters()).device
    return device_there(asked)


def label_maps(batch: Batch) -> Iterator[Tensor]:
    """The label map [H, W] of each image.

    Raises:
        ValueError: if there are none.
    """
    if batch.mask is None:
        raise ValueError(f"image {int(batch.index[0])}: expected a label map, got none")
    yield from batch.mask[:, 0]


def whole_label_maps(whole: ObjectDataset, indices: Iterable[int]) -> Iterator[Tensor]:
    """`label_maps` of images, which can be large: they are read one by one."""
    for index in indices:
        yield from label_maps(whole.__getitems__([index]))


def noise_for(
    model: ObjectCentricModel,
    indices: Sequence[int],
    *,
    seed: int,
    device: torch.device,
    means: bool,
) -> ImageNoise:
    """The images' noise; with `means` only what starts the slots, and then posteriors' means."""
    drawn = model.initial_draws if means else None
    return ImageNoise(indices, seed=seed, device=device, drawn=drawn)


@contextmanager
def evaluating(model: ObjectCentricModel) -> Iterator[None]:
    """The model in evaluation mode, for a while."""
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)
