"""Objects of images with the slots that stand for them.

Legend: N objects, K slots, D dimensions of a slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from emorl.data import Batch, ObjectDataset
from emorl.evaluation.measuring import evaluating, label_maps, noise_for, whole_label_maps
from emorl.evaluation.per_image import labels_at
from emorl.metrics import match_objects
from emorl.models import Decomposition, ObjectCentricModel

LEAST_PIXELS, LEAST_IOU = 50, 0.1
CODES = (
    "posterior means of slots; objects of 50 pixels or more, matched to slots by the IoU of the "
    "decoder's masks, 0.1 or more"
)
_NO_PROPERTIES = ("visibility", "pixel_coords")


@dataclass
class MatchedObjects:
    """Objects with the slots that stand for them.

    Attributes:
        codes: of the matched slots, [N, D].
        factors: of these objects by name, [N] or [N, n].
        seen: objects that are large enough.
        beyond: images with labels that have no factors, which are no objects.
        images: all slots of each image, [K, D] each.
        visible: of each image the rows of `every` for its objects that are large enough.
        every: factors of all such objects, matched or not, by name.
        kept: rows of `every` that `codes` and `factors` hold, [N].
    """

    codes: NDArray[np.float64]
    factors: dict[str, NDArray[np.float64]]
    seen: int
    beyond: int = 0
    images: list[NDArray[np.float64]] = field(default_factory=list)
    visible: list[NDArray[np.int64]] = field(default_factory=list)
    every: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    kept: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


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
    whole = dataset.before_resizing()
    gathered = _Gathered()
    with evaluating(model):
        for start in range(0, images, batch_size):
            indices = range(start, min(start + batch_size, images))
            batch = dataset.__getitems__(indices)
            maps = label_maps(batch) if whole is None else whole_label_maps(whole, indices)
            decomposition = model(
                batch.image.to(device),
                refinement_steps=refinement_steps,
                num_slots=num_slots,
                generator=noise_for(model, indices, seed=seed, device=device, means=True),
            )
            gathered.add(batch, maps, decomposition)
    return gathered.objects()


class _Gathered:
    """Objects and slots of images, batch by batch."""

    def __init__(self) -> None:
        self._slots: list[NDArray[np.float64]] = []
        self._visible: list[NDArray[np.int64]] = []
        self._factors: list[dict[str, NDArray[np.float64]]] = []
        self._codes: list[NDArray[np.float64]] = []
        self._kept: list[int] = []
        self._seen = self._beyond = 0

    def add(self, batch: Batch, maps: Iterable[Tensor], decomposition: Decomposition) -> None:
        """Add a batch with its decomposition and each image's label map [H, W]."""
        slots = decomposition.slots.double().cpu().numpy()
        masks = decomposition.masks[:, :, 0]
        own_factors = properties(batch.factors)
        entities = entities_of(own_factors)
        factors = {name: x.double().cpu().numpy() for name, x in own_factors.items()}
        for row, true in enumerate(x.cpu() for x in maps):
            predicted = labels_at(masks[row, None].cpu(), (true.shape[0], true.shape[1]))
            (own,) = match_objects(
                true[None].long(), predicted, least_pixels=LEAST_PIXELS, least_iou=LEAST_IOU
            )
            labels, pixels = true.unique(return_counts=True)
            visible = [
                label
                for label, count in zip(labels.tolist(), pixels.tolist(), strict=True)
                if 0 < label < entities and count >= LEAST_PIXELS
            ]
            self._beyond += bool(labels[-1] >= entities)
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
            beyond=self._beyond,
            images=self._slots,
            visible=self._visible,
            every=every,
            kept=kept,
        )


def properties(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors that are an object's own: not those with one number an image, if there are."""
    entities = max((x.shape[1] for x in factors.values()), default=0)
    return {
        name: value
        for name, value in factors.items()
        if name not in _NO_PROPERTIES and (value.shape[1] > 1 or entities == 1)
    }


def entities_of(factors: Mapping[str, Tensor]) -> int:
    """How many entities an image has by its factors, the background among them.

    Raises:
        ValueError: if they do not agree, with each one's number.
    """
    counts = {name: x.shape[1] for name, x in factors.items()}
    if len({*counts.values()}) != 1:
        named = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"expected factors of the same number of entities, got {named}")
    return next(iter(counts.values()))
