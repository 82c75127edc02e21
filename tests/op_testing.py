"""What the tests of all operators share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from emorl.ops import backends

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


def assert_as_accurate_as_plain(
    actual: dict[str, Tensor],
    plain: dict[str, Tensor],
    truth: dict[str, Tensor],
    roundings: dict[str, float],
) -> None:
    """No result is further from the float64 truth than twice the plain result, plus rounding.

    Plain may be right by luck, and is where it is the truth itself. So `roundings`, derived from
    the operator's formula, tell by how much rounding moves each result: sums of absolute terms
    times roundings of each, in units of half an eps of the dtype that is computed in, float32 or
    wider. In float64 the unit is a whole eps, since the truth is as rounded as the result. Narrower
    results are rounded once more when they are stored.
    """
    for name, expected in truth.items():
        assert actual[name].shape == expected.shape, name
        if expected.numel() == 0:
            continue
        dtype = plain[name].dtype
        wide = torch.promote_types(dtype, torch.float32)
        unit = torch.finfo(wide).eps / (1 if wide == torch.float64 else 2)
        rounding = unit * roundings[name]
        if wide != dtype:
            rounding += torch.finfo(dtype).eps / 2 * expected.abs().max().item()
        allowed = 2 * (plain[name] - expected).abs().max().item() + rounding
        error = (actual[name] - expected).abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
