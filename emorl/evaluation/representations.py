"""What slots say about objects: DCI, probes and active dimensions, for `emorl evaluate`.

Legend: N objects, K slots, D dimensions of a slot.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emorl.data import Batch, ObjectDataset
from emorl.evaluation.measuring import before_resizing, evaluating, noise_for
from emorl.evaluation.per_image import labels_at
from emorl.evaluation.summaries import Summary, single
from emorl.evaluation.traversals import ACTIVENESS_IMAGES, active, activeness, infer
from emorl.metrics import match_objects
from emorl.metrics.disentanglement import (
    DCI,
    Factor,
    Probe,
    dci,
    dimension_correlation,
    dimension_redundancy,
    learn_matching,
    make_factors,
    mean_scores,
    probe,
    released_dci,
    targets_of,
)
from emorl.models import Decomposition, ObjectCentricModel

LEAST_OBJECTS = 100
"""Fewer cannot say how a model's slots disentangle: half of them is to train on."""
LEAST_PIXELS, LEAST_IOU = 50, 0.1
CODES = (
    "posterior means of slots; objects of 50 pixels or more, matched to slots by the IoU of the "
    "decoder's masks, 0.1 or more"
)
_PROBES: tuple[Probe, ...] = ("linear", "mlp")
_NO_PROPERTIES = ("visibility", "pixel_coords")


@dataclass
class MatchedObjects:
    """Objects with the slots that stand for them.

    Attributes:
        codes: of the matched slots, [N, D].
        factors: of these objects by name, [N] or [N, n].
        seen: objects that are large enough.
        images: all slots of each image, [K, D] each.
        visible: of each image the rows of `every` for its objects that are large enough.
        every: factors of all such objects, matched or not, by name.
        kept: rows of `every` that `codes` and `factors` hold, [N].
    """

    codes: NDArray[np.float64]
    factors: dict[str, NDArray[np.float64]]
    seen: int
    images: list[NDArray[np.float64]] = field(default_factory=list)
    visible: list[NDArray[np.int64]] = field(default_factory=list)
    every: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    kept: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


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
        objects.

    Raises:
        ModuleNotFoundError: without scikit-learn.
    """
    sizes = {"refinement_steps": refinement_steps, "num_slots": num_slots}
    count = dataset.count(images)
    if why := _lack(dataset, count):
        return {}, {}, [f"no DCI: {why}"]
    importlib.import_module("sklearn")  # it would be missed after the work otherwise
    objects = match(model, dataset, count, batch_size=batch_size, seed=seed, **sizes)
    if len(objects.codes) < LEAST_OBJECTS:
        found = f"{len(objects.codes)} of {objects.seen} objects have a slot"
        return {}, {}, [f"no DCI: {found}; {LEAST_OBJECTS} are needed"]
    factors = make_factors(objects.factors)
    if not factors:
        return {}, {}, ["no DCI: all objects have the same factors"]
    try:
        values, importance = _scored(objects, factors, trees, seed)
        learned = _learned_values(objects, trees, seed)
    except ValueError as error:  # a factor is the same for all objects of a half
        return {}, {}, [f"no DCI: {error}"]
    notes = [] if learned else ["no learned DCI: an image has more objects than slots"]
    values |= learned
    activity = _activity(model, dataset, count, seed, sizes)
    chosen = active(activity).numpy()
    spread = chosen[objects.codes[:, chosen].std(axis=0) > 0]
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


def match(
    model: ObjectCentricModel,
    dataset: ObjectDataset,
    images: int,
    *,
    batch_size: int,
    seed: int,
    refinement_steps: int | None = None,
    num_slots: int | None = None,
) -> MatchedObjects:
    """The objects of the first images and their slots, by the rules in `CODES`."""
    device = next(model.parameters()).device
    whole = before_resizing(dataset)
    gathered = _Gathered()
    with evaluating(model):
        for start in range(0, images, batch_size):
            indices = range(start, min(start + batch_size, images))
            batch = dataset.__getitems__(indices)
            true = (batch if whole is None else whole.__getitems__(indices)).mask
            assert true is not None  # `_lack` has made sure
            decomposition = model(
                batch.image.to(device),
                refinement_steps=refinement_steps,
                num_slots=num_slots,
                generator=noise_for(model, indices, seed=seed, device=device, means=True),
            )
            gathered.add(batch, true[:, 0].cpu(), decomposition)
    return gathered.objects()


class _Gathered:
    """Objects and slots of images, batch by batch."""

    def __init__(self) -> None:
        self._slots: list[NDArray[np.float64]] = []
        self._visible: list[NDArray[np.int64]] = []
        self._factors: list[dict[str, NDArray[np.float64]]] = []
        self._codes: list[NDArray[np.float64]] = []
        self._kept: list[int] = []
        self._seen = 0

    def add(self, batch: Batch, true: Tensor, decomposition: Decomposition) -> None:
        """Add a batch with its label maps [B, H, W] and its decomposition."""
        slots = decomposition.slots.double().cpu().numpy()
        masks = decomposition.masks[:, :, 0]
        predicted = labels_at(masks, (true.shape[1], true.shape[2])).cpu()
        pairs = match_objects(
            true.long(), predicted, least_pixels=LEAST_PIXELS, least_iou=LEAST_IOU
        )
        factors = {n: x.double().cpu().numpy() for n, x in properties(batch.factors).items()}
        entities = min(x.shape[1] for x in factors.values())  # a file may have more masks
        for row, own in enumerate(pairs):
            labels, pixels = true[row].unique(return_counts=True)
            visible = [
                label
                for label, count in zip(labels.tolist(), pixels.tolist(), strict=True)
                if 0 < label < entities and count >= LEAST_PIXELS
            ]
            self._slots.append(slots[row])
            self._visible.append(np.arange(self._seen, self._seen + len(visible)))
            self._factors.append({name: x[row, visible] for name, x in factors.items()})
            slot_of = {label: slot for slot, label in own.items()}
            for place, label in enumerate(visible):
                if label in slot_of:
                    self._kept.append(self._seen + place)
                    self._codes.append(slots[row, slot_of[label]])
            self._seen += len(visible)

    def objects(self) -> MatchedObjects:
        """All of them."""
        names = self._factors[0] if self._factors else {}
        every = {name: np.concatenate([f[name] for f in self._factors]) for name in names}
        kept = np.array(self._kept, dtype=np.int64)
        width = self._slots[0].shape[1] if self._slots else 0
        return MatchedObjects(
            codes=np.array(self._codes).reshape(-1, width),
            factors={name: values[kept] for name, values in every.items()},
            seen=self._seen,
            images=self._slots,
            visible=self._visible,
            every=every,
            kept=kept,
        )


def properties(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors that are an object's own."""
    return {name: value for name, value in factors.items() if name not in _NO_PROPERTIES}


def _lack(dataset: ObjectDataset, count: int) -> str:
    """What DCI lacks in these data; nothing where it has all."""
    first = dataset.__getitems__([0]) if count else None
    if first is None or first.mask is None:
        return f"{dataset.name} has no masks"
    factors = properties(first.factors)
    if not factors:
        return f"{dataset.name} has no factors"
    most = count * (next(iter(factors.values())).shape[1] - 1)
    return "" if most >= LEAST_OBJECTS else f"{most} objects at most, {LEAST_OBJECTS} are needed"


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
    factors = make_factors(objects.every)
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
