"""Several models measured alike: a row for each, and the spread from seed to seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from emorl.paths import real
from emorl.runs.folder import run_of
from emorl.runs.trained import located, short_name

_COLUMNS = ("fg_ari", "ari", "fg_miou", "mse", "dci_disentanglement", "dci_completeness")
_ALONE = "no mean over runs: it is of those whose configurations differ in trainer.seed alone"
_PLANNED = ("trainer.steps", "trainer.cooldown_steps", "trainer.least_steps")

Result = dict[str, Any]


class Compared(NamedTuple):
    """A model's result among others.

    Attributes:
        name: of the model, as the user knows it.
        configuration: by what it was trained, as `configuration_of` tells; None if unknown.
        result: of the evaluation.
    """

    name: str
    configuration: Result | None
    result: Result


def configuration_of(target: Path, checkpoint: Path) -> Result | None:
    """By what a model was trained, but for the seed, and the steps where minutes decide on them.

    Args:
        target: as the user named it; a checkpoint of a run is not the run.
        checkpoint: that it led to.

    Returns:
        None for a lone model folder.
    """
    from emorl.training.config_file import load_config
    from emorl.training.config_keys import flat

    run = run_of(target)
    if run is None:
        return None
    config = load_config(run.config)
    left_out = ("trainer.seed", *(_PLANNED if config.trainer.max_minutes is not None else ()))
    named = None if real(located(target)) == real(run.path) else checkpoint.name
    values = {key: x for key, x in flat(asdict(config)).items() if key not in left_out}
    return {**values, "checkpoint": named}


def compare(
    models: Sequence[Compared], failures: Mapping[str, str], *, least_fg_ari: float
) -> tuple[Result, str]:
    """Put the results of several models together: for JSON, and as text.

    Args:
        models: one or more.
        failures: model -> why it could not be evaluated.
        least_fg_ari: as `across_runs` takes it.

    Raises:
        ValueError: if the results are not alike.
    """
    from emorl.evaluation.summaries import across_runs, means_of_runs

    results = [model.result for model in models]
    summary = across_runs(results, failures, least_fg_ari=least_fg_ari)
    groups = _groups(models)
    spreads = [means_of_runs([model.result for model in group]) for group in groups]
    configurations = [
        {"checkpoints": [model.result["checkpoint"] for model in group], "metrics": spread}
        for group, spread in zip(groups, spreads, strict=True)
    ]
    text = _table(groups, spreads, summary)
    if len(groups) > 1:
        del summary["metrics"]
    return {**summary, "configurations": configurations, "results": results}, text


def _groups(models: Sequence[Compared]) -> list[list[Compared]]:
    """Runs of one configuration together, in the order of the first of each."""
    groups: list[list[Compared]] = []
    for model in models:
        known = model.configuration is not None
        own = [g for g in groups if known and g[0].configuration == model.configuration]
        if own:
            own[0].append(model)
        else:
            groups.append([model])
    return groups


def _table(groups: Sequence[Sequence[Compared]], spreads: Sequence[Result], summary: Result) -> str:
    names = [name for name in _COLUMNS if name in summary["metrics"]]
    rows: list[tuple[str, list[float]]] = []
    for group, spread in zip(groups, spreads, strict=True):
        rows += [(m.name, [m.result["metrics"][name]["mean"] for name in names]) for m in group]
        if len(group) > 1:
            rows += [
                (f"  {label} over these {len(group)} runs", [spread[name][label] for name in names])
                for label in ("mean", "std")
            ]
    width = max(len(title) for title, _ in rows)
    lines = [" ".join([f"{'run':{width}}", *(f"{name:>19}" for name in names)])]
    lines += [" ".join([f"{title:{width}}", *(f"{x:19.5g}" for x in xs)]) for title, xs in rows]
    alone = [_ALONE] if 1 < len(groups) == sum(map(len, groups)) else []
    return "\n".join(
        [
            f"protocol {summary['protocol']}, {summary['data']}",
            *lines,
            *alone,
            *_failed(groups, summary),
        ]
    )


def _failed(groups: Sequence[Sequence[Compared]], summary: Result) -> list[str]:
    """How many failed, and each with the reason."""
    known = {model.result["checkpoint"]: model.name for group in groups for model in group}
    failures: dict[str, str] = summary["failures"]
    count = f"{len(failures)} of {summary['runs']} runs failed ({summary['failure']})"
    reasons = [f"failed: {known.get(m) or short_name(m)}: {why}" for m, why in failures.items()]
    return [count, *reasons]
