"""Matching slots to objects by what they say of them, without masks.

Legend: B images, K slots, D dimensions of a slot, E objects of an image, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emorl.extras import require_package
from emorl.metrics.factors import Floats


def learn_matching(
    slots: Floats, objects: Sequence[Floats], *, ridge: float = 1e-2, most: int = 50
) -> list[NDArray[np.int64]]:
    """The slot of each object, learned from what slots say of the objects' factors.

    In turns a linear map is fitted from slots to the factors of their objects, and each image's
    objects get the slots that predict them best (Hungarian), until nothing changes. The first map
    is fitted to all pairs of an image's slots and objects. So no mask is needed, and neither the
    slots' nor the objects' order has a say, as in Dang-Nhu, Evaluating disentanglement of
    structured representations (2022), whose predictor is another.

    Args:
        slots: [B, K, D].
        objects: of each image [E, T], E up to K: the targets of `targets_of`.
        ridge: weight of the penalty, relative to the number of pairs.
        most: rounds.

    Returns:
        Of each image the slots of its objects, [E].

    Raises:
        ModuleNotFoundError: without scipy.
        ValueError: if an image has more objects than slots, or none has any.
    """
    if not any(map(len, objects)) or max(map(len, objects)) > slots.shape[1]:
        raise ValueError(f"expected images of 1 to {slots.shape[1]} objects, one per slot")
    flat = slots.reshape(-1, slots.shape[2])
    spread = flat.std(axis=0)
    slots = (slots - flat.mean(axis=0)) / np.where(spread > 0, spread, 1)
    pairs = [
        (np.repeat(own, len(rows), axis=0), np.tile(rows, (len(own), 1)))
        for own, rows in zip(slots, objects, strict=True)
    ]
    matched: list[NDArray[np.int64]] = []
    for _ in range(most):
        predict = _linear_map(pairs, ridge)
        best = [_best_slots(rows, predict(own)) for own, rows in zip(slots, objects, strict=True)]
        if matched and all(map(np.array_equal, matched, best)):
            break
        matched = best
        pairs = [
            (own[chosen], rows) for own, chosen, rows in zip(slots, matched, objects, strict=True)
        ]
    return matched


def _linear_map(pairs: Sequence[tuple[Floats, Floats]], ridge: float) -> Any:
    """The ridge regression from codes to targets, as a function."""
    codes, targets = (np.concatenate(part) for part in zip(*pairs, strict=True))
    means = codes.mean(axis=0), targets.mean(axis=0)
    centred = codes - means[0]
    gram = centred.T @ centred + ridge * len(codes) * np.eye(codes.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (targets - means[1]))
    return lambda x: (x - means[0]) @ weights + means[1]


def _best_slots(targets: Floats, predictions: Floats) -> NDArray[np.int64]:
    require_package("scipy")
    from scipy.optimize import linear_sum_assignment

    distance = ((targets[:, None] - predictions[None]) ** 2).sum(axis=2)  # [E, K]
    return np.asarray(linear_sum_assignment(distance)[1], dtype=np.int64)
