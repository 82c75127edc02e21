"""A few of `random_cases.py`'s calls, and that it tells what is wrong and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import random_cases
import torch
from op_testing import DEVICE, backend_params
from random_cases import CASES, Results, compare, fault

FEW = {"native": 40, "reference": 40, "triton": 2}


def pairs() -> list:
    return [
        pytest.param(op, b.values[0], marks=b.marks, id=f"{op}-{b.values[0]}")
        for op in CASES
        for b in backend_params(op)
    ]


@pytest.mark.skipif(DEVICE != "cpu", reason="cases are drawn for the CPU")
@pytest.mark.parametrize(("op", "backend"), pairs())
def test_random_cases(op: str, backend: str) -> None:
    assert compare(op, backend, FEW[backend], seed=1)["wrong"] == []


@pytest.mark.parametrize("op", CASES)
def test_a_wrong_digit_is_found(op: str) -> None:
    """One number of one result, off by a hundredth of the largest."""

    def spoilt(results: Results) -> Results:
        name = list(results)[-1]
        wrong = results[name].clone()
        wrong.view(-1)[0] += 0.01 * wrong.abs().max()
        return {**results, name: wrong}

    found = 0
    for index in range(20):
        name, _, run, bounds = random_cases.case_of(op, "reference", 0, index)
        results = run(torch.float32, "reference")
        if list(results.values())[-1].numel() == 0:
            continue

        def wrong(dtype: torch.dtype, backend: str, run=run) -> Results:
            results = run(dtype, "reference")
            return spoilt(results) if backend == "native" else results

        found += fault((name, torch.float32, wrong, bounds), "native") is not None
    assert found >= 10


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "counts.json"
    asked = {"op": "spatial_broadcast", "backend": "reference", "seed": 3}
    compare(**asked, cases=4, out=out)
    drawn: list[str] = []
    counts = compare(**asked, cases=7, out=out, before=drawn.append)
    assert drawn == [f"spatial_broadcast 3 {index}" for index in (4, 5, 6)]
    assert counts == json.loads(out.read_text())
    assert counts["done"] == 7
    drawn.clear()
    compare(**{**asked, "seed": 4}, cases=2, out=out, before=drawn.append)
    assert len(drawn) == 2
