"""How well a decomposition recovers the true segmentation.

The functions take label maps: `Decomposition.labels()` gives the predicted one, the argmax of the
masks that mix the reconstruction. These are the decoder's masks, not the maps of slot attention,
and the two give different numbers: say which one you used when you compare with other work.

Only `mean_iou`, which matches segments, needs scipy.

Shapes: B batch, T distinct labels among all true maps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from emorl.fields import fit
from emorl.metrics.contingency import assigned, contingency, intersection_over_union


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
    foreground_only = fit("foreground_only", foreground_only, bool)
    counts = contingency(true, predicted, foreground_only).counts
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
    foreground_only = fit("foreground_only", foreground_only, bool)
    table = contingency(true, predicted)
    iou = intersection_over_union(table.counts)
    present = table.counts.sum(2) > 0  # [B, T]
    if foreground_only:
        foreground = table.true_labels != 0
        iou, present = iou[:, foreground], present[:, foreground]
    matched = [float(m[assigned(m)].sum()) for m in iou.cpu().numpy()]
    # An image without a segment divides 0 by 0, which is the NaN promised above.
    return iou.new_tensor(matched) / present.sum(1)


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


def _best_overlap(true: Tensor, predicted: Tensor, foreground_only: bool) -> tuple[Tensor, Tensor]:
    """Of each true segment its best IoU, 0 where it is absent, and its pixels, [B, T] each."""
    foreground_only = fit("foreground_only", foreground_only, bool)
    table = contingency(true, predicted)
    pixels, iou = table.counts.sum(2), intersection_over_union(table.counts)
    best = iou.amax(2) if iou.shape[2] else iou.new_zeros(iou.shape[:2])
    if foreground_only:
        foreground = table.true_labels != 0
        best, pixels = best[:, foreground], pixels[:, foreground]
    return best, pixels
