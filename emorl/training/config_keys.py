"""The keys of a run's configuration: which there are, and what their text means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from emorl.fields import fit, is_text, shown
from emorl.runs.yaml_file import read_text
from emorl.suggestions import near
from emorl.training.config import Curriculum, DataConfig, GECOConfig, TrainerConfig

FREE_FORM = "trainer.curriculum"
_GROUPS = (FREE_FORM, "trainer.geco")
_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}


def parts_of(model: str) -> dict[str, type]:
    """The groups of a run's keys and their dataclasses.

    Raises:
        ValueError: if there is no such model.
    """
    from emorl.models import MODELS

    if not isinstance(model, str) or model not in MODELS:
        hint = near(model, MODELS) if isinstance(model, str) else ""
        raise ValueError(f"--model: no model is called {shown(model)}{hint}")
    return {"network": MODELS[model].Config, "data": DataConfig, "trainer": TrainerConfig}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values; a group that is empty or free in its form is a value.

    Raises:
        ValueError: for a key that is given twice, nested and dotted.
    """
    pairs: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        group = isinstance(value, dict) and value and key != FREE_FORM
        inner = flat(value, f"{key}.") if group else {key: value}
        if twice := pairs.keys() & inner.keys():
            raise ValueError(f"{min(twice)} is given twice")
        pairs |= inner
    return pairs


def value_of(key: str, text: str, model: str) -> Any:
    """What the text of an option means: itself where its key takes text, else a piece of YAML.

    Where a key takes text or a list, a list is what begins with "[".
    """
    hint = _hint_of(key, model)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    is_list = text.startswith("[") and any(get_origin(kind) is tuple for kind in kinds)
    if any(map(is_text, kinds)) and not is_list:
        return None if text == "null" and type(None) in kinds else text
    try:
        value = read_text(text)
    except ValueError:
        return text
    return text if value is None and text != "null" else value


def fitting(key: str, value: Any, model: str) -> Any:
    """A value, if it is what its key expects; YAML's other words for true and false are these.

    Raises:
        ValueError: if it is not.
    """
    if key in _GROUPS and isinstance(value, dict):
        return value  # complete when the options have been read
    hint = _hint_of(key, model)
    if hint in (bool, bool | None) and isinstance(value, str):
        value = _SWITCHES.get(value.lower(), value)
    return fit(key, value, hint)


def check_keys(keys: Iterable[str], model: str, complaint: str) -> None:
    """Refuse the first unknown key, dotted, with `complaint` before it.

    Raises:
        ValueError: with a suggestion where one is near.
    """
    parts = parts_of(model)
    names = [f"{part}.{f.name}" for part, kind in parts.items() for f in dataclasses.fields(kind)]
    geco = [f"trainer.geco.{f.name}" for f in dataclasses.fields(GECOConfig)]
    known = ["model", *parts, *names, *geco]
    for key in keys:
        if key not in known and not key.startswith(f"{FREE_FORM}."):
            raise ValueError(f"{complaint}{key}{_hint(key, known)}")


def _hint(key: str, known: list[str]) -> str:
    """The same name in another group, else the closest one of the same group."""
    group, _, name = key.rpartition(".")
    namesakes = [k for k in known if k.rpartition(".")[2] == name]
    if namesakes:
        return f"; did you mean {namesakes[0]}?"
    siblings = {k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == group}
    hint = near(name, siblings)
    return hint.replace("did you mean ", f"did you mean {group}.") if group else hint


def _hint_of(key: str, model: str) -> Any:
    """The type hint of a known key; Any for a part."""
    part, _, name = key.partition(".")
    if key.startswith("trainer.geco."):
        return get_type_hints(GECOConfig)[key.removeprefix("trainer.geco.")]
    if key.startswith(f"{FREE_FORM}."):
        return get_args(Curriculum)[1]
    return get_type_hints(parts_of(model)[part])[name] if name else Any
