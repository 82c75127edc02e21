"""Measuring a model with several numbers of refinement steps, or of slots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from emorl.data import ObjectDataset
from emorl.evaluation.measuring import require_subject
from emorl.evaluation.protocols import evaluate
from emorl.fields import fit, shown
from emorl.memory import require_slots
from emorl.models import ObjectCentricModel

LEAST = {"refinement_steps": 0, "num_slots": 1}
"""What can be swept, and its least number."""


def sweep(
    model: ObjectCentricModel,
    dataset: ObjectDataset,
    parameter: str,
    values: Sequence[int],
    **settings: Any,
) -> dict[str, Any]:
    """Measure a model with several numbers of refinement steps or of slots, all else alike.

    Args:
        model: any model that takes other numbers than its own.
        dataset: images.
        parameter: one of `LEAST`.
        values: numbers to measure it with, two or more; they are taken in increasing order.
        settings: further arguments of `evaluate`.

    Returns:
        The settings that `evaluate` returns; "sweep" (the parameter), "own" (the model's own
        number), "notes", and "points": for each value "value", "metrics" and, with several
        samples, "seeds". Also "per_image": name -> values, those of each value after the other,
        with the parameter among the names; NaN where a value has no such metric.

    Raises:
        ValueError: before anything is measured, if the model has no such number or a fixed one, or
            for values that are not possible; and as `evaluate`.
    """
    require_subject(model, dataset)
    numbers = _checked(model, dataset, parameter, values)
    settings["per_image"] = True
    results = [evaluate(model, dataset, **{**settings, parameter: n}) for n in numbers]
    own = ("metrics", "seeds", "notes", "per_image", parameter)
    points = [
        {"value": n, **{name: result[name] for name in ("metrics", "seeds") if name in result}}
        for n, result in zip(numbers, results, strict=True)
    ]
    return {
        **{name: value for name, value in results[0].items() if name not in own},
        "sweep": parameter,
        "own": getattr(model.config, parameter),
        "notes": [*dict.fromkeys(note for result in results for note in result["notes"])],
        "points": points,
        "per_image": _joined(parameter, numbers, [result["per_image"] for result in results]),
    }


def _checked(
    model: ObjectCentricModel, dataset: ObjectDataset, parameter: str, values: Sequence[int]
) -> list[int]:
    """The numbers to measure with, in increasing order."""
    if not isinstance(parameter, str) or parameter not in LEAST:
        raise ValueError(f"sweep: expected one of {', '.join(LEAST)}, got {shown(parameter)}")
    if parameter == "refinement_steps" and not model.refines:
        raise ValueError(f"sweep: {model.name} has no refinement steps")
    if parameter == "num_slots" and not model.free_slots:
        number = model.config.num_slots
        raise ValueError(f"sweep: this {model.name} has {number} slots, fixed by the network")
    numbers = sorted({fit(parameter, value, int) for value in values})
    if len(numbers) < 2 or numbers[0] < LEAST[parameter]:
        raise ValueError(
            f"sweep: expected two or more numbers of {LEAST[parameter]} or more, got {numbers}"
        )
    if parameter == "num_slots":
        require_slots(numbers[-1], dataset.image_size)
    return numbers


def _joined(
    parameter: str, numbers: Sequence[int], tables: Sequence[dict[str, list[float]]]
) -> dict[str, list[float]]:
    """The tables of all numbers as one, each after the other."""
    joined: dict[str, list[float]] = {parameter: []}
    names = dict.fromkeys(name for table in tables for name in table)
    for number, table in zip(numbers, tables, strict=True):
        rows = len(table["image"])
        joined[parameter] += [number] * rows
        for name in names:
            joined.setdefault(name, []).extend(table.get(name, [math.nan] * rows))
    return joined
