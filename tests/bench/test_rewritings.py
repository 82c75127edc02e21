"""The benchmark of the rewritings: every row computes the same, and processes measure memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from emorl.bench import rewritings
from emorl.bench.step.cases import Case
from emorl.bench.workers import Step, Worker
from emorl.models import EfficientMORL, EfficientMORLConfig
from emorl.nn.networks import SpatialBroadcastDecoder


@pytest.mark.parametrize("decoder", ["small", "iodine"])
def test_every_row_has_the_loss_and_the_gradients_of_the_first(decoder: str) -> None:
    config = EfficientMORLConfig(
        image_size=(9, 11),
        num_slots=3,
        slot_dim=5,
        encoder_channels=6,
        encoder_layers=2,
        decoder=decoder,
        decoder_channels=4,
        backend="reference",
    )
    model = EfficientMORL(config).double()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.25)
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    expected: dict[str, torch.Tensor] = {}
    names = [*rewritings.REWRITINGS]
    for count in range(len(names) + 1):
        torch.manual_seed(1)
        model.zero_grad()
        loss = rewritings.objective(model, images, names[:count])
        loss.backward()
        results = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        expected = expected or {"loss": loss.detach(), **results}
        torch.testing.assert_close({"loss": loss.detach(), **results}, expected)


def test_rows_leave_the_package_as_it_is() -> None:
    before = SpatialBroadcastDecoder._first
    with rewritings.only([]):
        assert SpatialBroadcastDecoder._first is not before
    assert SpatialBroadcastDecoder._first is before


def make_greedy_step(mebibytes: int) -> Step:
    def step() -> float:
        return float(torch.ones(mebibytes, 2**20, dtype=torch.uint8)[0, 0]) + torch.rand(()).item()

    return step


def test_a_process_tells_its_peak_and_draws_the_same_noise() -> None:
    with Worker(partial(make_greedy_step, 100), threads=1) as worker:
        losses = {worker.step()[1] for _ in range(3)}
        assert len(losses) == 1
        assert 100 * 2**20 <= worker.peak() < 130 * 2**20


class Process:
    """In a worker's place; it dies at the first step where its row has no fused operators."""

    def __init__(self, build: partial, *_: int, keep: bool) -> None:
        self.lives = "fused" in build.args[1]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self) -> tuple[float, float]:
        if not self.lives:
            raise EOFError
        return 0.5, 1.0

    def peak(self) -> int:
        return 2**20


def test_rows_whose_processes_die_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = [{"loss": 0.0, "gradient": 0.0}] * 9
    monkeypatch.setattr(rewritings, "differences", lambda *_: gaps)
    monkeypatch.setattr(rewritings, "Worker", Process)
    found = rewritings.measure(Case.parse("clevr6:2:3"), threads=1, rounds=2)
    assert [row["rewriting"] for row in found["rows"]] == [*rewritings.REWRITINGS.values()][4:]
    none = rewritings.describe({**found, "rows": []})
    assert none == "EfficientMORL, clevr6, 96x96, K=7, I=3, batch 2: every process died"


def test_table() -> None:
    rows = [
        {
            "rewriting": name,
            "seconds": {"median": seconds},
            "peak_bytes_above_start": 2**21,
            "difference": {"loss": 1e-7, "gradient": 2e-6},
        }
        for name, seconds in [("as released", 2.0), ("faster", 0.5)]
    ]
    table = rewritings.describe({"case": "clevr6, batch 2, I=3", "rows": rows})
    assert table.splitlines()[-1] == "| faster | 0.500 | 4.00x | 2 | 1e-07 | 2e-06 |"
