"""Pixels that true and predicted segments share.

Shapes: B batch, N pixels, T and P distinct labels among all true and all predicted maps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emorl.extras import require_package
from emorl.metrics.checks import require_label_maps


class Contingency(NamedTuple):
    """Pixels per pair of labels: counts int64 [B, T, P], and the labels of rows and columns.

    Labels are modulo 2**64: those of uint64 beyond int64 are negative.
    """

    counts: Tensor
    true_labels: Tensor
    predicted_labels: Tensor


def contingency(true: Tensor, predicted: Tensor, foreground_only: bool = False) -> Contingency:
    """Count the pixels of each pair of labels, image by image.

    Args:
        true: label maps, [B, ...].
        predicted: label maps of the same shape.
        foreground_only: leave out the pixels whose true label is 0.

    Raises:
        ValueError: if shapes differ or labels are not non-negative integers.
    """
    require_label_maps(true, predicted)
    true, predicted, batch = true.long(), predicted.long(), len(true)
    true_labels, row = torch.unique(true, return_inverse=True)
    predicted_labels, column = torch.unique(predicted, return_inverse=True)
    shape = (batch, len(true_labels), len(predicted_labels))
    image = torch.arange(batch, device=true.device).view(-1, *[1] * (true.dim() - 1))
    cell = (image * shape[1] + row) * shape[2] + column
    cell = cell[true != 0] if foreground_only else cell.flatten()
    counts = torch.bincount(cell, minlength=shape[0] * shape[1] * shape[2])
    return Contingency(counts.view(shape), true_labels, predicted_labels)


def intersection_over_union(counts: Tensor) -> Tensor:
    """IoU of each pair of labels, float64 [B, T, P], from their counts."""
    union = counts.sum(2, keepdim=True) + counts.sum(1, keepdim=True) - counts
    return counts.double() / union.clamp(min=1)  # labels absent from an image: 0 / 1


def assigned(overlap: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pairs whose sum is largest."""
    require_package("scipy")  # not needed for the other metrics
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return rows, columns
