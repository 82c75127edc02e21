"""What slots say about objects: DCI, probes and active dimensions, for `emorl evaluate`.

Legend: N objects, K slots, D dimensions of a slot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emorl.data import ObjectDataset
from emorl.evaluation.matched_objects import (
    CODES,
    MatchedObjects,
    entities_of,
    match,
    properties,
)
from emorl.evaluation.summaries import Summary, single
from emorl.evaluation.traversals import ACTIVENESS_IMAGES, active, activeness, infer
from emorl.extras import require_package
from emorl.metrics.disentanglement import (
    DCI,
    dci,
    dimension_correlation,
    dimension_redundancy,
    released_dci,
)
from emorl.metrics.factors import Factor, make_factors, mean_scores, targets_of, varied
from emorl.metrics.learned_matching import learn_matching
from emorl.metrics.probes import Probe, probe
from emorl.models import ObjectCentricModel

LEAST_OBJECTS = 100
"""Fewer cannot say how a model's slots disentangle: half of them is to train on."""
_PROBES: tuple[Probe, ...] = ("linear", "mlp")


def measure_representations(
    model: ObjectCentricModel,
    dataset: ObjectDataset,
    *,
    images: int = 320,
    refinement_steps: int | None = None,
    num_slots: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    trees: int = 100,
) -> tuple[dict[str, Summary], dict[str, Any], list[str]]:
    """Measure DCI in three forms, two probes, and the activeness of dimensions.

    Slots are the means of their posteriors, for activeness samples of them, as published. Masks
    are compared at the true ones' size from before images were resized.

    Args:
        model: any model; where it is, it computes.
        dataset: images with masks and factors.
        images: the first ones.
        refinement_steps: None for the model's own number.
        num_slots: None for the model's own number.
        batch_size: images at a time.
        seed: of the noise, the trees and the probes.
        trees: of each ensemble.

    Returns:
        Metrics as `evaluate`'s, without a spread: "count" is of matched objects, "excluded" of
        those without a slot, but "active_dimensions" counts images. Details: importances and
        activeness. And notes. No metrics, but a note, where the data have no factors or too few
        objects, or a factor of an object is not finite.

    Raises:
        ModuleNotFoundError: without scikit-learn.
    """
    sizes = {"refinement_steps": refinement_steps, "num_slots": num_slots}
    count = dataset.count(images)
    if why := _lack(dataset, count):
        return {}, {}, [f"no DCI: {why}"]
    require_package("sklearn")  # it would be missed after the work otherwise
    objects = match(model, dataset, count, batch_size=batch_size, seed=seed, **sizes)
    if len(objects.codes) < LEAST_OBJECTS:
        found = f"{len(objects.codes)} of {objects.seen} objects have a slot"
        return {}, {}, [f"no DCI: {found}; {LEAST_OBJECTS} are needed"]
    if odd := _not_finite(objects):
        return {}, {}, [f"no DCI: {odd}"]
    every = make_factors(objects.factors)
    factors = varied(every)
    if not factors:
        return {}, {}, ["no DCI: all objects have the same factors"]
    values, importance = _scored(objects, factors, trees, seed)
    learned = _learned_values(objects, trees, seed)
    notes = [] if learned else ["no learned DCI: an image has more objects than slots"]
    if len(factors) < len(every):
        same = ", ".join(sorted({f.name for f in every} - {f.name for f in factors}))
        notes.append(f"not scored, since the same for all objects of the training half: {same}")
    if objects.beyond:
        notes.append(
            f"{objects.beyond} images have labels beyond the entities of the factors, of which the "
            "first is the background: no objects"
        )
    values |= learned
    activity = _activity(model, dataset, count, seed, sizes)
    chosen = active(activity).numpy()
    spread = chosen[np.ptp(objects.codes[:, chosen], axis=0) > 0]
    values["dimension_correlation"] = dimension_correlation(objects.codes[:, spread])
    values["dimension_redundancy"] = dimension_redundancy(objects.codes[:, spread])
    matched, lost = len(objects.codes), objects.seen - len(objects.codes)
    details = {
        "codes": CODES,
        "factors": [f"{f.name}: {'discrete' if f.discrete else 'continuous'}" for f in factors],
        "importance": importance.tolist(),
        "activeness": activity.tolist(),
        "activeness_images": min(count, ACTIVENESS_IMAGES),
    }
    metrics = {name: single(float(x), matched, lost) for name, x in values.items()}
    metrics["active_dimensions"] = single(len(chosen), min(count, ACTIVENESS_IMAGES), 0)
    return metrics, details, notes


def _scored(
    objects: MatchedObjects, factors: list[Factor], trees: int, seed: int
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """DCI right and as released, and probes, of matched objects; the importances of the first."""
    scores = dci(objects.codes, factors, trees=trees, seed=seed)
    released = released_dci(objects.codes, factors, trees=trees, seed=seed)
    values = {
        **_dci_values("dci", scores, factors),
        "dci_released_disentanglement": released.disentanglement,
        "dci_released_completeness": released.completeness,
        "dci_released_informativeness": float(np.mean([*released.informativeness.values()])),
    }
    for kind in _PROBES:
        read = probe(objects.codes, factors, kind, seed=seed)
        named = {**mean_scores(read, factors), **read}
        values.update({f"probe_{kind}_{name}": value for name, value in named.items()})
    return values, scores.importance


def _lack(dataset: ObjectDataset, count: int) -> str:
    """What DCI lacks in these data; nothing where it has all."""
    first = dataset.__getitems__([0]) if count else None
    if first is None or first.mask is None:
        return f"{dataset.name} has no masks"
    factors = properties(first.factors)
    if not factors:
        return f"{dataset.name} has no factors"
    try:
        most = count * (entities_of(factors) - 1)
    except ValueError as error:
        return str(error)
    return "" if most >= LEAST_OBJECTS else f"{most} objects at most, {LEAST_OBJECTS} are needed"


def _not_finite(objects: MatchedObjects) -> str:
    """The first factor of an object that is not finite, in words; nothing where all are."""
    for name, values in objects.every.items():
        finite: NDArray[np.bool_] = np.isfinite(values)
        for image, rows in enumerate(objects.visible):
            if not finite[rows].all():
                return f"factor {name} of image {image} is not finite"
    return ""


def _dci_values(prefix: str, scores: DCI, factors: list[Factor]) -> dict[str, float]:
    informativeness = {**mean_scores(scores.informativeness, factors), **scores.informativeness}
    return {
        f"{prefix}_disentanglement": scores.disentanglement,
        f"{prefix}_completeness": scores.completeness,
        **{f"{prefix}_informativeness_{name}": x for name, x in informativeness.items()},
    }


def _learned_values(objects: MatchedObjects, trees: int, seed: int) -> dict[str, float]:
    """DCI with the matching learned, and how far it is that of the masks; none if impossible."""
    slots = np.stack(objects.images)
    if max(map(len, objects.visible)) > slots.shape[1]:
        return {}
    factors = varied(make_factors(objects.every))
    targets = targets_of(factors)
    chosen = learn_matching(slots, [targets[rows] for rows in objects.visible])
    codes = np.concatenate([own[picked] for own, picked in zip(slots, chosen, strict=True)])
    scores = dci(codes, factors, trees=trees, seed=seed)
    informativeness = mean_scores(scores.informativeness, factors)
    same = (codes[objects.kept] == objects.codes).all(axis=1)
    return {
        "dci_learned_disentanglement": scores.disentanglement,
        "dci_learned_completeness": scores.completeness,
        **{f"dci_learned_informativeness_{name}": x for name, x in informativeness.items()},
        "dci_learned_agreement": float(same.mean()),
    }


def _activity(
    model: ObjectCentricModel,
    dataset: ObjectDataset,
    count: int,
    seed: int,
    sizes: dict[str, int | None],
) -> Tensor:
    images = min(count, ACTIVENESS_IMAGES)
    slots = infer(model, dataset, images, means=False, seed=seed, **sizes)
    return activeness(model, slots, seed=seed)
