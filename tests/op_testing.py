"""What the tests of all operators share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from emorl import ops
from emorl.ops import backends
from emorl.ops.slot_iterations import IterationWeights

# Where the operators are tested; on a machine with a GPU, EMORL_TEST_DEVICE=cpu chooses the CPU.
DEVICE = os.environ.get("EMORL_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")


def skip_where_native_is_refused(op: str) -> None:
    """Skip where ATEN_CPU_CAPABILITY leaves the process fewer vectors than the extension needs."""
    reason = backends()[op]["native"]
    if reason is not None and "ATEN_CPU_CAPABILITY" in os.environ:
        pytest.skip(reason)


def backend_params(op: str, *, compiled: bool = False) -> list[Any]:
    """All backends of an operator; those that cannot run here are skipped with the reason.

    With `compiled`, without the reference.
    """
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(reason is not None, reason=f"{op} / {name}: {reason}"),
        )
        for name, reason in backends(DEVICE)[op].items()
        if not (compiled and name == "reference")
    ]


def slot_iterations(x: Any, slots: Any, **others: Any) -> Tensor:
    """Emorl's operator with its weights as arguments; those that are left out are None."""
    weights: list[Any] = [others.pop(name, None) for name in IterationWeights._fields]
    return ops.slot_iterations(x, slots, IterationWeights(*weights), **others)


@pytest.fixture(autouse=True)
def unwritten_outputs_are_nan() -> Iterator[None]:
    """New tensors are filled with NaN, those made in C++ as well, so that gaps show."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def allocations(function: Callable[[], Any]) -> list[int]:
    """Bytes of each tensor that a function allocates on the CPU, also where it is freed again."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]
