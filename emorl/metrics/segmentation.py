"""How well a decomposition recovers the true segmentation and the image.

The functions take label maps: `Decomposition.labels()` gives the predicted one, the argmax of the
masks that mix the reconstruction. These are the decoder's masks, not the maps of slot attention,
and the two give different numbers: say which one you used when you compare with other work.

Only what matches segments needs scipy: `mean_iou`, `match_segments` and `match_objects`.

Shapes: B batch, N pixels, T and P distinct labels among all true and all predicted maps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
RANGE_TOLERANCE = 1e-3  # rounding of half precision may leave [0, 1] by this much


def adjusted_rand_index(
    true: Tensor, predicted: Tensor, *, foreground_only: bool = False
) -> Tensor:
    """Agreement of two segmentations on pairs of pixels, corrected for chance.

    With tp, tn, fp, fn = ordered pairs of distinct pixels that both put together, both apart, only
    the prediction together, only the truth together:

        ARI = 2 (tp tn - fn fp) / ((tp + fn) (fn + tn) + (tp + fp) (fp + tn))

    1 is a perfect match up to the names of the labels, 0 is what chance gives, less than 0 is
    possible. A perfect match is 1 also where the formula is 0/0: one segment on both sides, every
    pixel its own segment on both sides, or a single pixel. One segment on one side only is 0.

    Args:
        true: label maps, any integer dtype, non-negative, [B, ...]; need not be contiguous numbers.
        predicted: label maps of the same shape.
        foreground_only: leave out the pixels whose true label is 0. This is the FG-ARI of Greff et
            al. (2019). It does not see true background at all, so a slot that covers an object and
            half of the background loses nothing. Pixels that are *predicted* as background count.

    Returns:
        float64 [B], in [-0.5, 1]. NaN for an image without any pixel left, such as one without
        foreground: leave it out of a mean, and say how many were left out.

    Raises:
        ValueError: if shapes differ or labels are not non-negative integers.

    Source: Hubert & Arabie, Comparing partitions (1985); Greff et al., IODINE (2019).
    """
    counts = _contingency(true, predicted, foreground_only).counts
    total = counts.sum((1, 2))
    together = (counts * counts).sum((1, 2))
    together_true = counts.sum(2).square().sum(1)
    together_predicted = counts.sum(1).square().sum(1)
    # Integer until here, so that fp == fn == 0 is exact.
    tp = (together - total).double()
    fn = (together_true - together).double()
    fp = (together_predicted - together).double()
    tn = (total * total + together - together_true - together_predicted).double()
    index = 2 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))
    index = index.masked_fill((fn == 0) & (fp == 0), 1.0)
    return index.masked_fill(total == 0, torch.nan)


def mean_iou(true: Tensor, predicted: Tensor, *, foreground_only: bool = False) -> Tensor:
    """Mean intersection over union of the true segments with their best matching predictions.

    Each true segment t gets at most one predicted segment p and vice versa, so that the sum of
    `IoU(t, p) = |t and p| / |t or p|` is largest (Hungarian matching). A true segment left without
    a partner counts 0; predicted segments left over only count through what they take away.

    Args:
        true: label maps, any integer dtype, non-negative, [B, ...].
        predicted: label maps of the same shape.
        foreground_only: leave out the true *segment* 0, not its pixels: unlike in FG-ARI, a
            prediction that spills over into the background has a larger union and scores less.

    Returns:
        float64 [B], in [0, 1]. NaN for an image without a true segment (to match).

    Raises:
        ValueError: if shapes differ or labels are not non-negative integers.
    """
    table = _contingency(true, predicted)
    iou = _intersection_over_union(table.counts)
    present = table.counts.sum(2) > 0  # [B, T]
    if foreground_only:
        foreground = table.true_labels != 0
        iou, present = iou[:, foreground], present[:, foreground]
    matched = [float(m[_assigned(m)].sum()) for m in iou.cpu().numpy()]
    # An image without a segment divides 0 by 0, which is the NaN promised above.
    return iou.new_tensor(matched) / present.sum(1)


def match_segments(true: Tensor, predicted: Tensor) -> list[dict[int, int]]:
    """The matching behind `mean_iou`: for each image, predicted label -> true label.

    Only pairs that share at least one pixel are listed.

    Args:
        true: label maps, any integer dtype, non-negative, [B, ...].
        predicted: label maps of the same shape.

    Raises:
        ValueError: if shapes differ or labels are not non-negative integers.
    """
    table = _contingency(true, predicted)
    true_labels, predicted_labels = _labels(table.true_labels), _labels(table.predicted_labels)
    matches = []
    for iou in _intersection_over_union(table.counts).cpu().numpy():
        pairs = zip(*_assigned(iou), strict=True)
        matches.append({predicted_labels[p]: true_labels[t] for t, p in pairs if iou[t, p] > 0})
    return matches


def _labels(labels: Tensor) -> list[int]:
    """Labels as they were given: those from 2**63 on are negative in int64."""
    return [label % 2**64 for label in labels.tolist()]


def match_objects(
    true: Tensor, predicted: Tensor, *, least_pixels: int = 50, least_iou: float = 0.1
) -> list[dict[int, int]]:
    """The slot that stands for each object, if there is one: predicted label -> true label.

    Unlike in `match_segments` the background takes no part, and objects of which nothing useful
    can be told are left out. This is the matching under the DCI scores of Emami et al. (2021).

    Args:
        true: label maps, any integer dtype, non-negative, [B, ...]; 0 is the background.
        predicted: label maps of the same shape.
        least_pixels: an object with fewer visible pixels is left out.
        least_iou: a pair that overlaps less is left out after the matching.

    Returns:
        For each image the pairs that are left, by Hungarian matching on the IoU.

    Raises:
        ValueError: if shapes differ or labels are not non-negative integers.

    Source: the released EfficientMORL, lib/metrics.py; Emami et al. (2021), appendix E.2.
    """
    table = _contingency(true, predicted)
    objects = table.counts.sum(2) >= max(1, least_pixels)  # [B, T]
    objects &= table.true_labels != 0
    matches = []
    for iou, rows in zip(_intersection_over_union(table.counts).cpu(), objects.cpu(), strict=True):
        true_labels = _labels(table.true_labels[rows.to(table.true_labels.device)])
        predicted_labels, kept = _labels(table.predicted_labels), iou[rows].numpy()
        matches.append(
            {
                predicted_labels[p]: true_labels[t]
                for t, p in zip(*_assigned(kept), strict=True)
                if kept[t, p] > 0 and kept[t, p] >= least_iou
            }
        )
    return matches


def mean_best_overlap(true: Tensor, predicted: Tensor, *, foreground_only: bool = False) -> Tensor:
    """Mean over the true segments of the IoU with the prediction that overlaps each one best.

    The same number has two names: mBO in object-centric learning, and mSC (mean segmentation
    covering) in Engelcke et al. (2020). Unlike in `mean_iou`, one predicted segment may be the best
    of several true ones: a single slot for everything is not punished for the segments that it
    joins, but for its size.

    Args:
        true: label maps, any integer dtype, non-negative, [B, ...].
        predicted: label maps of the same shape.
        foreground_only: leave out the true *segment* 0, as in `mean_iou`.

    Returns:
        float64 [B], in [0, 1]. NaN for an image without a true segment.

    Raises:
        ValueError: if shapes differ or labels are not non-negative integers.

    Source: Pont-Tuset et al., Multiscale combinatorial grouping (2017); Engelcke et al., GENESIS
        (2020).
    """
    best, pixels = _best_overlap(true, predicted, foreground_only)
    return best.sum(1) / (pixels > 0).sum(1)


def segmentation_covering(
    true: Tensor, predicted: Tensor, *, foreground_only: bool = False
) -> Tensor:
    """The mean of `mean_best_overlap` weighted by the pixels of the true segments (SC).

    Args:
        true: label maps, any integer dtype, non-negative, [B, ...].
        predicted: label maps of the same shape.
        foreground_only: leave out the true *segment* 0, as in `mean_iou`.

    Returns:
        float64 [B], in [0, 1]. NaN for an image without a true segment.

    Raises:
        ValueError: if shapes differ or labels are not non-negative integers.

    Source: Arbelaez et al., Contour detection and hierarchical image segmentation (2011).
    """
    best, pixels = _best_overlap(true, predicted, foreground_only)
    return (best * pixels).sum(1) / pixels.sum(1)


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
    _check_tensors(image=image, reconstruction=reconstruction)
    if image.shape != reconstruction.shape or image.dim() < 2:
        raise ValueError(
            "mean_squared_error: expected image and reconstruction of one shape [B, ...], "
            f"got {list(image.shape)} and {list(reconstruction.shape)}"
        )
    difference = _unit_range(image, "image") - _unit_range(reconstruction, "reconstruction")
    squared = difference.square()
    if objects is None:
        return squared.flatten(1).mean(1)
    _check_tensors(image=image, objects=objects)
    if objects.dim() != image.dim() or any(
        size not in (1, whole) for size, whole in zip(objects.shape, image.shape, strict=True)
    ):
        raise ValueError(
            "mean_squared_error: expected label maps that broadcast to the image "
            f"{list(image.shape)}, got {list(objects.shape)}"
        )
    counted = (objects != 0).expand_as(squared)
    return squared.masked_fill(~counted, 0).flatten(1).sum(1) / counted.flatten(1).sum(1)


class _Contingency(NamedTuple):
    """Pixels per pair of labels: counts int64 [B, T, P], and the labels of rows and columns.

    Labels are modulo 2**64: those of uint64 beyond int64 are negative.
    """

    counts: Tensor
    true_labels: Tensor
    predicted_labels: Tensor


def _contingency(true: Tensor, predicted: Tensor, foreground_only: bool = False) -> _Contingency:
    _check_labels(true, predicted)
    true, predicted, batch = true.long(), predicted.long(), len(true)
    true_labels, row = torch.unique(true, return_inverse=True)
    predicted_labels, column = torch.unique(predicted, return_inverse=True)
    shape = (batch, len(true_labels), len(predicted_labels))
    image = torch.arange(batch, device=true.device).view(-1, *[1] * (true.dim() - 1))
    cell = (image * shape[1] + row) * shape[2] + column
    cell = cell[true != 0] if foreground_only else cell.flatten()
    counts = torch.bincount(cell, minlength=shape[0] * shape[1] * shape[2])
    return _Contingency(counts.view(shape), true_labels, predicted_labels)


def _intersection_over_union(counts: Tensor) -> Tensor:
    union = counts.sum(2, keepdim=True) + counts.sum(1, keepdim=True) - counts
    return counts.double() / union.clamp(min=1)  # labels absent from an image: 0 / 1


def _best_overlap(true: Tensor, predicted: Tensor, foreground_only: bool) -> tuple[Tensor, Tensor]:
    """Of each true segment its best IoU, 0 where it is absent, and its pixels, [B, T] each."""
    table = _contingency(true, predicted)
    pixels, iou = table.counts.sum(2), _intersection_over_union(table.counts)
    best = iou.amax(2) if iou.shape[2] else iou.new_zeros(iou.shape[:2])
    if foreground_only:
        foreground = table.true_labels != 0
        best, pixels = best[:, foreground], pixels[:, foreground]
    return best, pixels


def _assigned(overlap: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pairs whose sum is largest."""
    from scipy.optimize import linear_sum_assignment  # not needed for the other metrics

    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return rows, columns


def _check_labels(true: Tensor, predicted: Tensor) -> None:
    _check_tensors(true=true, predicted=predicted)
    if true.shape != predicted.shape or true.dim() < 2:
        raise ValueError(
            "expected true and predicted label maps of one shape [B, ...], "
            f"got {list(true.shape)} and {list(predicted.shape)}"
        )
    for name, labels in (("true", true), ("predicted", predicted)):
        if labels.dtype not in (*_SIGNED, *_UNSIGNED):
            raise ValueError(f"expected integer labels, got {name} labels of {labels.dtype}")
        if labels.dtype in _SIGNED and labels.numel() and (smallest := int(labels.amin())) < 0:
            raise ValueError(f"expected labels >= 0, got {name} label {smallest}")


def _check_tensors(**values: Tensor) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: expected a tensor, got {type(value).__name__}")
    devices = [value.device for value in values.values()]
    if devices[0] != devices[1]:
        names = " and ".join(values)
        raise ValueError(f"{names}: expected one device, got {devices[0]} and {devices[1]}")
    if devices[0].type == "meta":
        raise ValueError(f"{' and '.join(values)}: expected values, got the device meta")


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
