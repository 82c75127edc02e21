"""What of `emorl train` can be told without torch, whose import takes seconds: options, names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emorl.fields import shown
from emorl.paths import local
from emorl.suggestions import near

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DEFAULT_MODEL = "efficient_morl"
YOUR_IMAGES = "your-images"
"""The configuration whose sizes follow the images that are given."""


def find_config(name: str, model: str | None = None) -> Path:
    """The file that `name` means: a YAML file, or one that comes with emorl for the model.

    Raises:
        ValueError: if there is none; the message names the ones there are.
    """
    path = local(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ValueError(f"--config: expected a file, got the folder {name}")
    if path.suffix in {".yaml", ".yml"} or "/" in name:
        raise ValueError(f"--config: no such file: {name}")
    names = config_names(model)
    if name in names:
        return CONFIGS / (model or DEFAULT_MODEL) / f"{name}.yaml"
    hint = near(name, names)
    raise ValueError(f"--config: no file and no configuration is called {shown(name)}{hint}")


def config_names(model: str | None = None) -> list[str]:
    """The configurations that come with emorl for a model.

    Raises:
        ValueError: if there are none; the message names the models that have configurations.
    """
    models = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
    model = DEFAULT_MODEL if model is None else model
    if model not in models:
        raise ValueError(f"--model: no configurations for {shown(model)}{near(model, models)}")
    return sorted(path.stem for path in (CONFIGS / model).glob("*.yaml"))


def pairs_of(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Options and their values, as they stand: `--KEY VALUE` or `--KEY=VALUE`.

    Raises:
        ValueError: for a value without an option, and an option without a value.
    """
    pairs = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--") or argument == "--":
            raise ValueError(f"expected --KEY VALUE, got {shown(argument)}")
        key, equals, value = argument[2:].partition("=")
        given = value if equals else next(rest, "--")
        if given.startswith("--") and not equals:
            raise ValueError(f"{key}: expected one argument, got none")
        pairs.append((key, given))
    return pairs
