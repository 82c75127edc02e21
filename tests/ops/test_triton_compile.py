"""Triton's kernels become machine code for A100 and H100 anywhere; the summary lists them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from aot import OPERATORS, compile_cases, table

CAPABILITIES = (80, 90)
DTYPES = ("float32", "float64", "bfloat16", "float16")


def sizes_beyond(slots: int, width: int) -> set[tuple[int, ...]]:
    return {(slots + 1, 1, 1), (slots, width + 1, width), (slots, width, width + 1)}


# By operator and dtype: the smallest and the largest case that are compiled, and what is refused.
EXTREMES = {
    "slot_attention": {  # converts narrower dtypes
        "float32": ({(1, 1, 1), (64, 256, 256)}, sizes_beyond(64, 256)),
        "float64": ({(1, 1, 1), (64, 64, 64)}, sizes_beyond(64, 64)),
    },
    "mixture_nll": dict.fromkeys(DTYPES, ({(1, 1), (64, 8)}, {(65, 8), (64, 9)})),
    "spatial_broadcast": dict.fromkeys(DTYPES, ({(1,), (64,)}, set())),
}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("operator", OPERATORS)
def test_triton_compiles_what_it_takes_and_refuses_more(
    operator: str, record_property: Callable[[str, object], None]
) -> None:
    records = compile_cases(operator, "extremes")
    assert [record for record in records if "failed" in record] == []
    for capability in CAPABILITIES:
        outcomes: dict[str, tuple[set[Any], set[Any]]] = {}
        for record in (x for x in records if x["capability"] == capability):
            compiled, refused = outcomes.setdefault(record["dtype"], (set(), set()))
            (refused if "refused" in record else compiled).add(tuple(record["size"]))
        assert outcomes == EXTREMES[operator]
    for row in table(records):
        record_property("compiled", f"triton {row}")
