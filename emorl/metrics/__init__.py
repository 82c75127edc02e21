"""Metrics of a decomposition, batched and in float64."""

from emorl.metrics.segmentation import (
    adjusted_rand_index,
    match_segments,
    mean_iou,
    mean_squared_error,
)

__all__ = ["adjusted_rand_index", "match_segments", "mean_iou", "mean_squared_error"]
