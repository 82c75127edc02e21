"""Metrics of decompositions and representations, in float64."""

from emorl.metrics.matching import match_objects, match_segments
from emorl.metrics.reconstruction import mean_squared_error
from emorl.metrics.segmentation import (
    adjusted_rand_index,
    mean_best_overlap,
    mean_iou,
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
