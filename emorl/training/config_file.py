"""Runs as YAML files: which file a name means, reading one with overrides, writing one.

Overrides are dotted, as on the command line: `["--trainer.steps", "20"]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from emorl.runs.files import write_atomically
from emorl.suggestions import near
from emorl.training.config import RunConfig
from emorl.training.config_keys import check_keys, flat, one_line, parts_of

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEFAULT_MODEL = "efficient_morl"


def find_config(name: str, model: str | None = None) -> Path:
    """The file that `name` means: a YAML file, or one that comes with emorl for the model.

    Raises:
        ValueError: if there is none; the message names the ones there are.
    """
    if Path(name).is_file():
        return Path(name)
    if Path(name).suffix in {".yaml", ".yml"} or "/" in name:
        raise ValueError(f"--config: no such file: {name}")
    names = config_names(model)
    if name in names:
        return CONFIGS / (model or DEFAULT_MODEL) / f"{name}.yaml"
    raise ValueError(f"--config: no file and no configuration is called {name}{near(name, names)}")


def config_names(model: str | None = None) -> list[str]:
    """The configurations that come with emorl for a model.

    Raises:
        ValueError: if there are none; the message names the models that have configurations.
    """
    names = sorted(path.stem for path in (CONFIGS / (model or DEFAULT_MODEL)).glob("*.yaml"))
    if not names:
        models = [path.name for path in CONFIGS.iterdir() if path.is_dir()]
        raise ValueError(f"--model: no configurations for {model}{near(model or '', models)}")
    return names


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
    from jsonargparse import ArgumentError

    values = {} if path is None else _read(Path(path))
    model = model or values.get("model", DEFAULT_MODEL)
    parser = build_parser(model)
    check_keys(flat(values), model, f"{path}: unknown key ")
    check_keys(_options(overrides), model, "unknown option --")
    config = [] if path is None else [f"--config={path}"]
    try:
        parsed = parser.parse_args([*config, *overrides, f"--model={model}"])
        parts = parser.instantiate(parsed)
    except (ArgumentError, ValueError) as error:
        raise ValueError(one_line(str(error), model)) from None
    return RunConfig(parts.network, model, parts.data, parts.trainer)


def save_config(config: RunConfig, path: Path) -> None:
    """Write everything about a run; `load_config` reads it back."""
    values = {"model": config.model, **_plain(dataclasses.asdict(config))}
    write_atomically(path, yaml.safe_dump(values, sort_keys=False).encode())


def build_parser(model: str) -> ArgumentParser:
    """The parser of a run of the model, with the units and defaults of every option.

    Raises:
        ValueError: if there is no such model.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="emorl train", exit_on_error=False, add_help=False)
    parser.add_argument("--config", action="config", help="a YAML file, or a configuration's name")
    parser.add_argument("--model", type=str, default=model, help="the model's name")
    for part, kind in parts_of(model).items():
        parser.add_class_arguments(kind, part)
    return parser


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"--config: no such file: {path}")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def _options(arguments: Sequence[str]) -> list[str]:
    return [a[2:].partition("=")[0].rstrip("+") for a in arguments if a.startswith("--")]


def _plain(value: Any) -> Any:
    """Tuples as lists, which is all that YAML's safe writer knows."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
