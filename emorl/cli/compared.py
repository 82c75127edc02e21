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
_ALONE = (
    "no mean over runs: it is of those whose configurations differ in trainer.seed, and in it alone"
)
_SEED = "trainer.seed"
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
    """By what a model was trained, but for the steps where minutes decide on them.

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
    left_out = _PLANNED if config.trainer.max_minutes is not None else ()
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
    spreads = [means_of_runs([model.result for model in _of_each_seed(group)]) for group in groups]
    configurations = [
        {"checkpoints": [model.result["checkpoint"] for model in group], "metrics": spread}
        for group, spread in zip(groups, spreads, strict=True)
    ]
    text = _table(groups, spreads, summary) + _failed(models, failures, summary, least_fg_ari)
    del summary["metrics"]  # of all runs, whatever their configurations
    if len(groups) == 1:
        summary["metrics"] = spreads[0]
    return {**summary, "configurations": configurations, "results": results}, text


def _groups(models: Sequence[Compared]) -> list[list[Compared]]:
    """Runs of one configuration but for the seed together, in the order of the first of each."""
    groups: list[list[Compared]] = []
    for model in models:
        own = [group for group in groups if _is_another_seed(group[0], model)]
        if own:
            own[0].append(model)
        else:
            groups.append([model])
    return groups


def _is_another_seed(first: Compared, second: Compared) -> bool:
    if first.configuration is None or second.configuration is None:
        return False
    return {**first.configuration, _SEED: 0} == {**second.configuration, _SEED: 0}


def _of_each_seed(group: Sequence[Compared]) -> list[Compared]:
    """The first run of each seed: a copy of a run is no other seed."""
    first: dict[Any, Compared] = {}
    for model in group:
        first.setdefault((model.configuration or {}).get(_SEED), model)
    return [*first.values()]


def _table(groups: Sequence[Sequence[Compared]], spreads: Sequence[Result], summary: Result) -> str:
    names = [name for name in _COLUMNS if name in summary["metrics"]]
    rows: list[tuple[str, list[float]]] = []
    for group, spread in zip(groups, spreads, strict=True):
        rows += [(m.name, [m.result["metrics"][name]["mean"] for name in names]) for m in group]
        seeds = len(_of_each_seed(group))
        if seeds > 1:
            rows += [
                (f"  {label} over {seeds} seeds", [spread[name][label] for name in names])
                for label in ("mean", "std")
            ]
    width = max(len(title) for title, _ in rows)
    lines = [" ".join([f"{'run':{width}}", *(f"{name:>19}" for name in names)])]
    lines += [" ".join([f"{title:{width}}", *(f"{x:19.5g}" for x in xs)]) for title, xs in rows]
    several = any(len(_of_each_seed(group)) > 1 for group in groups)
    alone = [_ALONE] if len(rows) > 1 and not several else []
    return "\n".join([f"protocol {summary['protocol']}, {summary['data']}", *lines, *alone])


def _failed(
    models: Sequence[Compared], failures: Mapping[str, str], summary: Result, least_fg_ari: float
) -> str:
    """Lines about what could not be evaluated, and about what counts as failed."""
    known = {model.result["checkpoint"]: model.name for model in models}
    low = [f"{known[m]} ({why})" for m, why in summary["failures"].items() if m in known]
    lines = [
        f"could not be evaluated: {short_name(m)}: {why.removeprefix(f'{m}: ')}"
        for m, why in failures.items()
    ]
    if low:
        lines.append(f"FG-ARI below {least_fg_ari:g}, which counts as failed: {', '.join(low)}")
    return "".join(f"\n{line}" for line in lines)
