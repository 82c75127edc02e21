"""Metrics of decompositions and representations, in float64."""

from emorl.metrics.segmentation import (
    adjusted_rand_index,
    match_objects,
    match_segments,
    mean_best_overlap,
    mean_iou,
    mean_squared_error,
    segmentation_covering,
)

__all__ = [
    "adjusted_rand_index",
    "match_objects",
    "match_segments",
    "mean_best_overlap",
    "mean_iou",
    "mean_squared_error",
    "segmentation_covering",
]
