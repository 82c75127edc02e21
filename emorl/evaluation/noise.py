"""Noise that belongs to the image, not to the batch that the image is measured in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from emorl.data.random import fold, normal
from emorl.fields import fit, shown
from emorl.nn import BatchNoise
from emorl.nn.posterior import seed_for


class ImageNoise(BatchNoise):
    """A model's noise for images, each of which is treated as if it were alone.

    Each number is a pure function of the seed, the image's index, how many draws came before, and
    the number's place in the image's part of the draw. Refinement descends the image's own loss,
    not the mean over the batch. So an image gets the same numbers, up to rounding, in any batch
    and on any device.
    """

    _states: Tensor  # [B]
    _draws: int
    _drawn: int | None

    def __new__(
        cls,
        images: Sequence[int],
        *,
        seed: int,
        device: torch.device | str = "cpu",
        drawn: int | None = None,
    ) -> Self:
        """The noise from its beginning; in `__new__`, since the base takes nothing but a device.

        Args:
            images: indices of the images in their data set, in the batch's order.
            seed: any integer.
            device: where to draw: the model's.
            drawn: how many draws are noise; all later ones are 0, so that the sample of a posterior
                is its mean. A model's `initial_draws` start its slots. None: all are noise.

        Raises:
            ValueError: for indices that are none, or no integer as a seed or as `drawn`.
        """
        indices = [fit("images", index, int) for index in images]
        if not indices or min(indices) < 0:
            raise ValueError(f"images: expected indices of images, 0 or more, got {shown(indices)}")
        seed = fit("seed", seed, int)
        drawn = fit("drawn", drawn, int | None)
        noise = super().__new__(cls, device)  # type: ignore[call-arg]
        key = torch.tensor(seed_for("images", seed), device=device)
        noise._states = fold(key, torch.tensor(indices, device=device))
        noise._draws, noise._drawn = 0, drawn
        noise.images, noise.shares = len(indices), 1 / len(indices)
        # For a model that draws past `standard_normal`: such noise belongs to the batch.
        noise.manual_seed(seed_for("batch", seed, *indices))
        return noise

    def standard_normal(self, like: Tensor) -> Tensor:
        """The next noise of each image, of the shape and dtype of `like`: [B, ...] or [B * K, ...].

        The noise of [B * K, D] is that of [B, K, D].
        """
        if self._drawn is not None and self._draws >= self._drawn:
            return torch.zeros_like(like)
        numbers = torch.arange(like.numel() // len(self._states), device=self._states.device)
        states = fold(fold(self._states, self._draws)[:, None], numbers)
        self._draws += 1
        return normal(states).view(like.shape).to(like)
