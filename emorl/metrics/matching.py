"""Matching predicted segments to true ones, and slots to objects; needs scipy.

Shapes: B batch, T distinct labels among all true maps.
"""

from __future__ import annotations

from torch import Tensor

from emorl.fields import fit
from emorl.metrics.contingency import assigned, contingency, intersection_over_union


def match_segments(true: Tensor, predicted: Tensor) -> list[dict[int, int]]:
    """The matching behind `mean_iou`: for each image, predicted label -> true label.

    Only pairs that share at least one pixel are listed.

    Args:
        true: label maps, any integer dtype, non-negative, [B, ...].
        predicted: label maps of the same shape.

    Raises:
        ValueError: if shapes differ or labels are not non-negative integers.
    """
    table = contingency(true, predicted)
    true_labels, predicted_labels = _labels(table.true_labels), _labels(table.predicted_labels)
    matches = []
    for iou in intersection_over_union(table.counts).cpu().numpy():
        pairs = zip(*assigned(iou), strict=True)
        matches.append({predicted_labels[p]: true_labels[t] for t, p in pairs if iou[t, p] > 0})
    return matches


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
        ValueError: if shapes differ, labels are not non-negative integers, or a bound is none.

    Source: the released EfficientMORL, lib/metrics.py; Emami et al. (2021), appendix E.2.
    """
    if fit("least_pixels", least_pixels, int) < 0:
        raise ValueError(f"least_pixels: expected at least 0, got {least_pixels}")
    if not 0 <= fit("least_iou", least_iou, float) <= 1:
        raise ValueError(f"least_iou: expected a number from 0 to 1, got {least_iou}")
    table = contingency(true, predicted)
    objects = table.counts.sum(2) >= max(1, least_pixels)  # [B, T]
    objects &= table.true_labels != 0
    matches = []
    for iou, rows in zip(intersection_over_union(table.counts).cpu(), objects.cpu(), strict=True):
        true_labels = _labels(table.true_labels[rows.to(table.true_labels.device)])
        predicted_labels, kept = _labels(table.predicted_labels), iou[rows].numpy()
        matches.append(
            {
                predicted_labels[p]: true_labels[t]
                for t, p in zip(*assigned(kept), strict=True)
                if kept[t, p] > 0 and kept[t, p] >= least_iou
            }
        )
    return matches


def _labels(labels: Tensor) -> list[int]:
    """Labels as they were given: those from 2**63 on are negative in int64."""
    return [label % 2**64 for label in labels.tolist()]
