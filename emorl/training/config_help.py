"""The keys of a run's configuration for `emorl train --help`, from the docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_type_hints

from emorl.fields import in_words, shown
from emorl.training.config import GECOConfig, RunConfig
from emorl.training.config_keys import parts_of

_WIDTH, _INDENT = 90, 24


def describe_keys(model: str, config: RunConfig | None = None) -> str:
    """Every key of a run of the model: what it is, what it expects, its value.

    Args:
        model: the model's name.
        config: whose values are told; None for those that hold where a configuration sets none.

    Raises:
        ValueError: if there is no such model.
    """
    groups = [*parts_of(model).items(), ("trainer.geco", GECOConfig)]
    return "\n\n".join(
        "\n".join(_describe_group(part, kind, _part_of(config, part))) for part, kind in groups
    )


def option(name: str, text: str) -> str:
    """An option and what it is, wrapped."""
    indent = " " * _INDENT
    lines = textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    head = f"  {name}"
    return head + (lines[len(head) :] if len(head) < _INDENT else f"\n{lines}")


def attributes_of(kind: type) -> dict[str, str]:
    """What the docstrings of a class and of those it is made from say of each attribute."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        section = re.split(r"\n(?=\S)", section, maxsplit=1)[0]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE):
            texts[name] = " ".join(text.split())
    return texts


def _part_of(config: RunConfig | None, part: str) -> Any:
    """A part of a configuration, "trainer.geco" for example; None if there is none."""
    found: Any = config
    for name in part.split("."):
        found = getattr(found, name, None)
    return found


def _describe_group(part: str, kind: type, values: Any) -> Iterator[str]:
    texts, hints = attributes_of(kind), get_type_hints(kind)
    about, _, _ = (kind.__doc__ or "").strip().partition("\n")  # without docstrings: python -OO
    yield f"{part}: {about}"
    for field in dataclasses.fields(kind):
        about = texts.get(field.name, "").rstrip(".")
        default = _default(field, values)
        yield option(f"--{part}.{field.name}", f"{about} ({in_words(hints[field.name])}{default})")


def _default(field: dataclasses.Field[Any], values: Any) -> str:
    if values is not None:
        return f"; default: {shown(getattr(values, field.name))}"
    if field.default is not dataclasses.MISSING:
        return f"; default: {shown(field.default)}"
    if field.default_factory is not dataclasses.MISSING:
        return f"; default: {shown(field.default_factory())}"
    return ""
