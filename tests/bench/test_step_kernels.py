"""The kernels of a training step, as `emorl.bench.step_kernels` counts them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from emorl.bench import step_kernels


def test_means_of_a_step_longest_first():
    x = torch.ones(300, 300)

    def step() -> float:
        x.exp()
        x.exp()
        (x @ x).cos()
        return 0.0

    found = {kernel.name: kernel for kernel in step_kernels.kernels_of(step, "cpu")}
    assert (found["aten::exp"].launches, found["aten::cos"].launches) == (2, 1)
    times = [kernel.milliseconds for kernel in found.values()]
    assert times == sorted(times, reverse=True)
    assert min(times) > 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    out = tmp_path / "kernels.json"
    options = ["--cases", "tetrominoes:2:0", "--out", str(out), "--allow-reference"]
    monkeypatch.setattr(sys, "argv", ["step_kernels", *options])
    step_kernels.main()
    (result,) = json.loads(out.read_text())["results"]
    case = "EfficientMORL, tetrominoes, 35x35, K=4, I=0, batch 2"
    assert (result["case"], result["variant"]) == (case, "float32")
    total = sum(kernel["milliseconds"] for kernel in result["kernels"])
    assert f"{case}, float32: {total:.2f} ms" in capsys.readouterr().out
