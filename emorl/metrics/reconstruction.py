"""How well a reconstruction recovers the image."""

from __future__ import annotations

import torch
from torch import Tensor

from emorl.metrics.checks import require_tensors

RANGE_TOLERANCE = 1e-3  # rounding of half precision may leave [0, 1] by this much


def mean_squared_error(
    image: Tensor, reconstruction: Tensor, *, objects: Tensor | None = None
) -> Tensor:
    """Mean over pixels and channels of the squared difference, both in [0, 1].

    Args:
        image: uint8, or float in [0, 1], [B, ...].
        reconstruction: the same shape, uint8 or float in [0, 1].
        objects: label maps that broadcast to the image, as [B, 1, H, W] to [B, 3, H, W]: only
            pixels whose label is not 0 count (FG-MSE). None for all pixels.

    Returns:
        float64 [B]; NaN where no pixel of an image counts.

    Raises:
        ValueError: if shapes differ, or the values are of another dtype or range.
    """
    require_tensors(image=image, reconstruction=reconstruction)
    if image.shape != reconstruction.shape or image.dim() < 2:
        raise ValueError(
            "mean_squared_error: expected image and reconstruction of one shape [B, ...], "
            f"got {list(image.shape)} and {list(reconstruction.shape)}"
        )
    difference = _unit_range(image, "image") - _unit_range(reconstruction, "reconstruction")
    squared = difference.square()
    if objects is None:
        return squared.flatten(1).mean(1)
    require_tensors(image=image, objects=objects)
    if objects.dim() != image.dim() or any(
        size not in (1, whole) for size, whole in zip(objects.shape, image.shape, strict=True)
    ):
        raise ValueError(
            "mean_squared_error: expected label maps that broadcast to the image "
            f"{list(image.shape)}, got {list(objects.shape)}"
        )
    if not objects.isfinite().all():
        raise ValueError("mean_squared_error: expected labels, got objects with NaN or infinity")
    counted = (objects != 0).expand_as(squared)
    return squared.masked_fill(~counted, 0).flatten(1).sum(1) / counted.flatten(1).sum(1)


def _unit_range(values: Tensor, name: str) -> Tensor:
    if values.dtype == torch.uint8:
        return values.double() / 255
    if not values.is_floating_point():
        raise ValueError(f"mean_squared_error: expected uint8 or float, got {name} {values.dtype}")
    values = values.double()
    known = values[~values.isnan()]
    if known.numel():
        low, high = known.amin().item(), known.amax().item()
        if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
            raise ValueError(
                f"mean_squared_error: expected {name} in [0, 1], got values from {low} to {high}"
            )
    return values
