"""Fields of dataclasses held to their type hints, and one line about what does not fit."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_BEYOND = 2**63  # no whole number of torch's is as large
_PLAIN = re.compile(r"-{0,2}[A-Za-z_][\w./+-]{0,60}")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_IN_WORDS = {
    NoneType: "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def fit_fields(instance: Any, prefix: str = "") -> None:
    """Hold a dataclass to its type hints: for its `__post_init__`.

    Lists become the tuples, whole numbers the floats, and mappings the dataclasses that the hints
    ask for. A boolean is no number, a string of digits neither, and numbers are finite.

    Args:
        instance: of the dataclass.
        prefix: of its fields' names in messages.

    Raises:
        ValueError: naming the field, what it expects and what it has.
    """
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = fit(f"{prefix}{field.name}", getattr(instance, field.name), hints[field.name])
        setattr(instance, field.name, value)


def fit(name: str, value: Any, hint: Any) -> Any:
    """A value as its hint says.

    Raises:
        ValueError: if it does not fit.
    """
    kinds = _alternatives(hint)
    for kind in kinds:
        if isinstance(value, Mapping) and isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return _made(name, value, kind)
        if isinstance(value, Mapping) and get_origin(kind) is dict:
            return {key: fit(f"{name}.{key}", v, get_args(kind)[1]) for key, v in value.items()}
    try:
        return _fitted(value, kinds)
    except TypeError:
        large = int in kinds and isinstance(value, Integral) and abs(int(value)) >= _BEYOND
        expected = in_words(hint) + (" below 2**63" if large else "")
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}") from None


def in_words(hint: Any) -> str:
    """What a hint expects."""
    kinds = _alternatives(hint)
    if len(kinds) > 1 and {*kinds} != {int, float}:
        return " or ".join(in_words(kind) for kind in kinds)
    if get_origin(hint) is Literal:
        values = [*map(str, get_args(hint))]
        return f"one of {', '.join(values)}" if is_text(hint) else " or ".join(values)
    if get_origin(hint) in (tuple, list):
        inner = [in_words(kind).removeprefix("a ") for kind in get_args(hint) if kind is not ...]
        return f"[{', '.join(inner)}{'' if len(inner) > 1 else ', ...'}]"
    if dataclasses.is_dataclass(hint):
        return f"{{{dataclasses.fields(hint)[0].name}: NUMBER, ...}}"
    if get_origin(hint) is dict:
        return f"{{NAME: {in_words(get_args(hint)[1])}, ...}}"
    return _IN_WORDS.get(kinds[-1], str(hint))


def is_text(hint: Any) -> bool:
    """Whether a hint expects text, any or one of some."""
    return hint is str or (get_origin(hint) is Literal and isinstance(get_args(hint)[0], str))


def shown(value: Any) -> str:
    """A value for a message: short, on one line, and text that is no plain word in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    if isinstance(value, Integral) and (bits := int(value).bit_length()) > 200:
        return f"one of {bits} bits"
    return _SHORT.repr([*value] if isinstance(value, tuple) else value)


def escaped(text: str) -> str:
    """Text of one line: what does not print is an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _typed(values: tuple[Any, ...]) -> list[tuple[type, Any]]:
    """Values and their types: to Python, true is 1."""
    return [(type(value), value) for value in values]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _made(name: str, values: Mapping[str, Any], kind: type) -> Any:
    """A dataclass from its values; its own `__post_init__` looks at them."""
    for field in dataclasses.fields(kind):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            expected = in_words(get_type_hints(kind)[field.name])
            raise ValueError(f"{name}.{field.name}: expected {expected}, got nothing")
    if unknown := {*values} - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"{name}: unknown key {shown(min(map(str, unknown)))}")
    return kind(**values)


def _fitted(value: Any, kinds: tuple[Any, ...]) -> Any:
    """A value as the first of these kinds that it is one of; TypeError if it is of none."""
    for kind in kinds:
        origin, inner = get_origin(kind), get_args(kind)
        if kind is Any or (origin is Literal and (type(value), value) in _typed(inner)):
            return value
        if isinstance(value, bool) and kind is not bool:
            continue
        if kind is int and isinstance(value, Integral) and abs(int(value)) < _BEYOND:
            return int(value)
        if kind is float and isinstance(value, Real) and _is_finite(value):
            return float(value)
        if origin in (tuple, list) and isinstance(value, list | tuple):
            return origin(_elements(value, inner, repeated=origin is list or inner[-1] is ...))
        if isinstance(kind, type) and kind not in (int, float) and isinstance(value, kind):
            return value
    raise TypeError


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(float(value))  # not as it is: NumPy compares in its own precision
    except OverflowError:  # a whole number beyond a float's range
        return False


def _elements(values: Any, hints: tuple[Any, ...], *, repeated: bool) -> list[Any]:
    """Elements of a list; TypeError if one does not fit, or there are too many or too few."""
    if not repeated and len(values) != len(hints):
        raise TypeError
    each = hints[:1] * len(values) if repeated else hints
    return [_fitted(value, _alternatives(hint)) for value, hint in zip(values, each, strict=True)]
