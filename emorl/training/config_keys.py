"""The keys of a run's configuration: which there are, and one-line complaints about others."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from emorl.suggestions import near
from emorl.training.config import DataConfig, GECOConfig, TrainerConfig

FREE_FORM = "trainer.curriculum"


def parts_of(model: str) -> dict[str, type]:
    """The groups of a run's keys and their dataclasses.

    Raises:
        ValueError: if there is no such model.
    """
    from emorl.models import MODELS

    if model not in MODELS:
        raise ValueError(f"--model: no model is called {model}{near(model, MODELS)}")
    return {"network": MODELS[model].Config, "data": DataConfig, "trainer": TrainerConfig}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; a group that is empty or free in its form is a value."""
    pairs: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        group = isinstance(value, dict) and value and key != FREE_FORM
        pairs |= flat(value, f"{key}.") if group else {key: value}
    return pairs


def check_keys(keys: Iterable[str], model: str, complaint: str) -> None:
    """Refuse the first unknown key, dotted, with `complaint` before it.

    Raises:
        ValueError: with a suggestion where one is near.
    """
    parts = parts_of(model)
    names = [f"{part}.{f.name}" for part, kind in parts.items() for f in dataclasses.fields(kind)]
    geco = [f"trainer.geco.{f.name}" for f in dataclasses.fields(GECOConfig)]
    known = ["model", "print_config", *parts, *names, *geco, "trainer.geco.help"]
    for key in keys:
        if key not in known and not key.startswith(f"{FREE_FORM}."):
            raise ValueError(f"{complaint}{key}{_hint(key, known)}")


def one_line(message: str, model: str) -> str:
    """The parser's complaint as `key: expected TYPE, got VALUE`, where it is about a value."""
    own = re.search(r"(?:data|trainer)\.[\w.]+: expected .*", message)
    if own:
        return own[0]
    key = re.search(r'Parser key "([\w.]+)":', message)
    value = re.search(r"(?:Got value|Given value): (.*)", message)
    if not (key and value):
        return " ".join(message.split())
    got = "" if value[1].startswith("Namespace") else f", got {value[1]}"
    return f"{key[1]}: expected {_expected(key[1], model)}{got}"


def _hint(key: str, known: list[str]) -> str:
    """The same name in another group, else the closest one of the same group."""
    group, _, name = key.rpartition(".")
    namesakes = [k for k in known if k.rpartition(".")[2] == name]
    if namesakes:
        return f"; did you mean {namesakes[0]}?"
    siblings = {k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == group}
    hint = near(name, siblings)
    return hint.replace("did you mean ", f"did you mean {group}.") if group else hint


def _expected(key: str, model: str) -> str:
    part, _, name = key.partition(".")
    parts = parts_of(model)
    if part not in parts or not name:
        return "the keys that --help lists"
    return _in_words(get_type_hints(parts[part])[name.partition(".")[0]])


def _in_words(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if hint is GECOConfig:
        return "{target_per_dim: NUMBER, ...}"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_in_words(inner) for inner in get_args(hint))
    return hint.__name__ if not get_args(hint) else str(hint)
