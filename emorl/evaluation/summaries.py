"""Summaries: of images, with an interval by the bootstrap, and of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Summary = dict[str, float | int]

INTERVAL = "low and high: 95 % interval of the mean, images resampled 1000 times (bootstrap)"
ALIKE = ("protocol", "data", "source", "split", "images", "samples", "seed")
"""What results have in common that are put together; a model's own sizes may differ."""
_RESAMPLED = 1000
_AT_ONCE = 20  # of these, in memory
_TAIL = 0.025


def summarise(values: Tensor) -> Summary:
    """Summarise a metric's values.

    Args:
        values: of the images, float64 [N]; NaN where the metric is not defined.

    Returns:
        "mean", "std" (population), "low" and "high" (`INTERVAL`), "count" and "excluded" (images
        for which the metric is not defined). NaN where there is nothing to summarise.
    """
    known = values[~values.isnan()]
    if len(known) == 0:
        return single(math.nan, 0, len(values))
    low, high = bootstrap(known)
    return {
        "mean": known.mean().item(),
        "std": known.std(correction=0).item(),
        "low": low,
        "high": high,
        "count": len(known),
        "excluded": len(values) - len(known),
    }


def single(value: float, count: int, excluded: int) -> Summary:
    """The summary of a number that belongs to all images together: it has no spread."""
    nothing = dict.fromkeys(("std", "low", "high"), math.nan)
    return {"mean": value, **nothing, "count": count, "excluded": excluded}


def bootstrap(values: Tensor) -> tuple[float, float]:
    """The middle 95 % of the means of resampled values; the same for the same values.

    Args:
        values: float64 [N], one or more.
    """
    generator = torch.Generator().manual_seed(0)
    size = (_AT_ONCE, len(values))
    means = torch.cat(
        [
            values[torch.randint(len(values), size, generator=generator)].mean(dim=1)
            for _ in range(_RESAMPLED // _AT_ONCE)
        ]
    )
    low, high = means.quantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=values.dtype)).tolist()
    return low, high


def across_runs(
    results: Sequence[dict[str, Any]], failures: Mapping[str, str], *, least_fg_ari: float
) -> dict[str, Any]:
    """Summarise the evaluations of several runs, such as one configuration's with several seeds.

    Args:
        results: of `evaluate`, with "checkpoint", "data" and "split"; all `ALIKE`.
        failures: run -> why it could not be evaluated.
        least_fg_ari: a run whose mean FG-ARI is below has failed, and counts as such; it stays in
            the means.

    Returns:
        "protocol", "data", "runs" (with those that could not be evaluated), "failures": run -> why,
        "failure" (what a failure is, in words), and "metrics", as `means_of_runs` gives them.

    Raises:
        ValueError: if there are no results, or they are not alike; in one line with all that
            differs.
    """
    require_alike(results)
    low = {
        result["checkpoint"]: f"FG-ARI {result['metrics']['fg_ari']['mean']:.3f}"
        for result in results
        if "fg_ari" in result["metrics"] and result["metrics"]["fg_ari"]["mean"] < least_fg_ari
    }
    return {
        "protocol": results[0]["protocol"],
        "data": results[0]["data"],
        "runs": len(results) + len(failures),
        "failure": f"not to be evaluated, or FG-ARI below {least_fg_ari:g}",
        "failures": {**failures, **low},
        "metrics": means_of_runs(results),
    }


def means_of_runs(results: Sequence[dict[str, Any]]) -> dict[str, Summary]:
    """Summarise the runs' means: name -> {"mean", "std", "runs"}, for metrics that all runs have.

    Args:
        results: of `evaluate`, one or more.
    """
    shared = [n for n in results[0]["metrics"] if all(n in r["metrics"] for r in results)]
    summaries: dict[str, Summary] = {}
    for name in shared:
        means = torch.tensor([r["metrics"][name]["mean"] for r in results], dtype=torch.float64)
        summaries[name] = {
            "mean": means.mean().item(),
            "std": means.std(correction=0).item(),
            "runs": len(means),
        }
    return summaries


def require_alike(results: Sequence[dict[str, Any]]) -> None:
    """Refuse to put results together whose numbers do not belong together.

    Raises:
        ValueError: if there are none, or some of `ALIKE` differ.
    """
    found = {key: dict.fromkeys(str(result.get(key)) for result in results) for key in ALIKE}
    differ = [f"{key} {' and '.join(values)}" for key, values in found.items() if len(values) > 1]
    if differ or not results:
        got = ", ".join(differ) or "no results"
        raise ValueError(f"runs of one table: expected the same {', '.join(ALIKE)}; got {got}")
