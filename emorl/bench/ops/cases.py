"""What the operators' suite times: each operator on each of its cases, in each dtype."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import torch

from emorl.bench.ops.operations import BOTH_PASSES
from emorl.bench.ops.operators import OPERATORS, call
from emorl.bench.passes import BOTH


class Cost(NamedTuple):
    """The least that a call needs: floating-point operations, and bytes through memory."""

    operations: int
    bytes: int


class Work(NamedTuple):
    """An operator on a case, in a dtype."""

    operator: str
    case: Any
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.operator} {self.case} {name_of(self.dtype)}"

    def cost(self, part: str) -> Cost:
        """The least that a call needs, by the shapes of its tensors."""
        operator = OPERATORS[self.operator]
        inputs = self.case.inputs(self.dtype, "meta")
        results = call(lambda x: operator.plain(self.case, x), inputs, part)
        passes = BOTH_PASSES if part == BOTH else 1
        return Cost(passes * operator.operations(self.case), operator.bytes_moved(inputs, *results))


def name_of(dtype: torch.dtype) -> str:
    """Such as "float32"."""
    return str(dtype).removeprefix("torch.")


def dtypes(device: str) -> tuple[torch.dtype, ...]:
    """Those that are timed on a device."""
    narrow = (torch.bfloat16, torch.float16) if device == "cuda" else ()
    return (torch.float32, *narrow)


def works(device: str, operators: Collection[str] = OPERATORS) -> list[list[Work]]:
    """All that is timed on a device, in the order of its importance.

    Returns:
        First the first case of each operator, then the second of each, and so on.
    """
    chosen = [(name, operator) for name, operator in OPERATORS.items() if name in operators]
    columns = [
        [(name, case) for case in (op.batch_32 if device == "cuda" else op.cases)]
        for name, op in chosen
    ]
    return [
        [Work(name, case, dtype) for dtype in dtypes(device) for name, case in filter(None, row)]
        for row in zip_longest(*columns)
    ]


def all_works(device: str) -> list[Work]:
    """The same, without the order's steps."""
    return [*chain(*works(device))]
