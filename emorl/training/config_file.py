"""Runs as YAML files: reading one with overrides, writing one.

Overrides are dotted, as on the command line: `["--trainer.steps", "20"]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emorl.fields import shown
from emorl.models import MODELS
from emorl.paths import local
from emorl.runs.files import write_atomically
from emorl.runs.yaml_file import as_text, read_file
from emorl.training.config import DataConfig, RunConfig, TrainerConfig
from emorl.training.config_keys import check_keys, fitting, flat, parts_of, value_of
from emorl.training.options import DEFAULT_MODEL, config_names, find_config, pairs_of

__all__ = ["config_names", "find_config", "load_config", "save_config"]


def load_config(
    path: str | Path | None, model: str | None = None, overrides: Sequence[str] = ()
) -> RunConfig:
    """Read a run, `overrides` last.

    Args:
        path: a YAML file, None for the defaults.
        model: the model's name; None takes the file's.
        overrides: dotted options and their values.

    Raises:
        ValueError: in one line, for a file that is not YAML, an unknown key and a wrong value.
    """
    values = {} if path is None else _flat_file(local(path))
    named = values.pop("model", DEFAULT_MODEL)
    parts_of(named)  # a wrong name stays wrong where another replaces it
    model = named if model is None else model
    parts: dict[str, Any] = {part: {} for part in parts_of(model)}
    check_keys(values, model, f"{path}: unknown key ")
    for key, value in values.items():
        _put(parts, key, value, model)
    for option, text in pairs_of(overrides):
        check_keys([option], model, "unknown option --")
        given = flat({option: value_of(option, text, model)})
        check_keys(given, model, "unknown option --")
        for key, value in given.items():
            _put(parts, key, value, model)
    try:
        network = MODELS[model].Config(**parts["network"])
    except ValueError as error:
        raise ValueError(f"network.{error}") from None
    return RunConfig(network, model, DataConfig(**parts["data"]), TrainerConfig(**parts["trainer"]))


def save_config(config: RunConfig, path: Path) -> None:
    """Write everything about a run; `load_config` reads it back."""
    values = {"model": config.model, **_plain(dataclasses.asdict(config))}
    write_atomically(path, as_text(values).encode())


def _flat_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"--config: no such file: {path}")
    values = read_file(path)
    try:
        return flat(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _put(parts: dict[str, Any], key: str, value: Any, model: str) -> None:
    """Set the value of a dotted key, if it fits, even where a later one may replace it."""
    *groups, name = key.split(".")
    if not groups:
        if value != {}:
            raise ValueError(f"{key}: expected keys and values, got {shown(value)}")
        return
    place = parts
    for group in groups:
        if not isinstance(place.get(group), dict):  # null, or none yet
            place[group] = {}
        place = place[group]
    place[name] = fitting(key, value, model)


def _plain(value: Any) -> Any:
    """Tuples as lists, which is all that YAML's safe writer knows."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
