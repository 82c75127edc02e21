"""Values and their type hints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest

from emorl.fields import fit, fit_fields, in_words, shown


@dataclass
class Inner:
    """A part."""

    width: int
    depth: int = 1

    def __post_init__(self) -> None:
        fit_fields(self, "outer.inner.")


@dataclass
class Outer:
    """A whole."""

    count: int = 1
    size: tuple[int, int] = (1, 2)
    widths: tuple[int, ...] = ()
    weight: float | None = None
    kind: Literal["a", "b"] = "a"
    range: tuple[Literal[0], Literal[1, 255]] | None = None
    stages: dict[str, list[tuple[int, int | float]]] = field(default_factory=dict)
    inner: Inner | None = None

    def __post_init__(self) -> None:
        fit_fields(self, "outer.")


def test_values_become_what_the_hints_say():
    outer = Outer(
        count=np.int64(3),
        size=[3, 4],
        widths=[5],
        weight=2,
        range=[0, 255],
        stages={"x": [[0, 1], [2, 0.5]]},
        inner={"width": 7},
    )
    assert outer.size == (3, 4)
    assert outer.widths == (5,)
    assert outer.range == (0, 255)
    assert outer.stages == {"x": [(0, 1), (2, 0.5)]}
    assert outer.inner == Inner(7)
    assert type(outer.count) is int
    assert type(outer.weight) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 2.0}, "outer.count: expected a whole number, got 2.0"),
        ({"count": True}, "outer.count: expected a whole number, got true"),
        ({"count": "3"}, "outer.count: expected a whole number, got '3'"),
        ({"count": None}, "outer.count: expected a whole number, got null"),
        ({"count": 2**63}, "outer.count: expected a whole number below 2**63, got 9223372036854"),
        ({"size": (1, 2, 3)}, "outer.size: expected [whole number, whole number], got [1, 2, 3]"),
        ({"size": 3}, "outer.size: expected [whole number, whole number], got 3"),
        ({"widths": (1, None)}, "outer.widths: expected [whole number, ...], got [1, None]"),
        ({"weight": float("nan")}, "outer.weight: expected a number or null, got nan"),
        ({"weight": 10**400}, "outer.weight: expected a number or null, got one of 1329 bits"),
        ({"weight": False}, "outer.weight: expected a number or null, got false"),
        ({"kind": "c"}, "outer.kind: expected one of a, b, got c"),
        ({"kind": ["a"]}, "outer.kind: expected one of a, b, got ['a']"),
        ({"range": [0, True]}, "outer.range: expected [0, 1 or 255] or null, got [0, True]"),
        ({"range": [0, 2]}, "outer.range: expected [0, 1 or 255] or null, got [0, 2]"),
        ({"stages": {"x": [[0]]}}, "outer.stages.x: expected [[whole number, number], ...], got"),
        ({"inner": {"width": 0.5}}, "outer.inner.width: expected a whole number, got 0.5"),
        ({"inner": {}}, "outer.inner.width: expected a whole number, got nothing"),
        ({"inner": {"width": 1, "w": 2}}, "outer.inner: unknown key w"),
        ({"inner": 3}, "outer.inner: expected {width: NUMBER, ...} or null, got 3"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Outer(**values)
    assert str(error.value).startswith(message)


def test_messages_stay_short():
    deep: list[object] = []
    for _ in range(2000):
        deep = [deep]
    for value in (deep, "x" * 10**6, {i: i for i in range(10**5)}, 10**5000, "\x1b[31m\n"):
        text = shown(value)
        assert len(text) < 200
        assert text.isprintable()
    with pytest.raises(ValueError, match="expected a whole number"):
        fit("x", deep, int)


def test_alternatives_in_words():
    assert in_words(int | float) == "a number"
    assert in_words(Literal["a"] | None) == "one of a or null"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [float, np.float16, np.float32, np.float64, np.longdouble])
def test_numbers_of_any_precision_are_finite_or_refused(kind):
    assert fit("x", kind(1.5), float) == 1.5
    assert type(fit("x", kind(1.5), float)) is float
    for value in ("inf", "-inf", "nan"):
        with pytest.raises(ValueError, match=r"^x: expected a number, got "):
            fit("x", kind(value), float)


def test_a_number_beyond_a_floats_range_is_refused():
    for value in (10**400, -(10**400)):
        with pytest.raises(ValueError, match=r"^x: expected a number, got one of 1329 bits$"):
            fit("x", value, float)
