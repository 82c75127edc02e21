"""`emorl bench --peer`, on an invented checkout."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from emorl.bench import suites
from emorl.bench.passes import BOTH, FORWARD
from emorl.bench.peers import run as peers_run
from emorl.bench.peers.cases import OURS, PEERS, THEIRS, Case, comparison, steps
from emorl.bench.peers.peer import Peer, build
from emorl.bench.peers.tables import compared, ratios, tables
from emorl.bench.peers.weights import copy, fix_spread, in_order, inverse_softplus, replaced
from emorl.bench.records import write
from emorl.bench.suite import Options, Record
from emorl.cli import main
from emorl.models import MODELS, SlotMLPConfig

# Its network is ours, under other names and in another order.
CODE = """
from gadget import log
from torch import nn

from emorl.models import SlotMLP

class Net(nn.Module):
    def __init__(self, config, factor):
        super().__init__()
        log("made")
        body = SlotMLP(config)
        self.second, self.first = body.decoder, body.encoder
        self.rest, self.factor = body, factor

    def forward(self, images):
        return self.factor * self.rest.objective(images).loss
"""


def config(side: int) -> SlotMLPConfig:
    return SlotMLPConfig(
        image_size=(side, side),
        num_slots=2,
        slot_dim=4,
        encoder_channels=4,
        decoder="small",
        decoder_channels=4,
    )


def peer(factor: float = 1.0, **changes: Any) -> Peer:
    tiny = Peer(
        title="Tiny",
        repository="someone/tiny",
        licence="none",
        file="tiny_peer/net.py",
        sizes=(16,),
        config=config,
        make=lambda code, config, batch: code.Net(config, factor),
        loss=lambda model, images: model(images),
        pairs=lambda ours, theirs: in_order(ours, theirs.rest),
        stand_ins={"gadget": {"log": print}},
    )
    return replace(tiny, **changes)


class InProcess:
    """Stands in for a process of its own."""

    def __init__(self, build: Callable[[], Mapping[str, Any]], *_: object, **__: object) -> None:
        self.steps = build()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, function: Callable[[], Any]) -> Any:
        return function()

    def step(self, name: str) -> tuple[float, float]:
        torch.manual_seed(1)
        begin = time.perf_counter()
        loss = self.steps[name]()
        return time.perf_counter() - begin, loss

    def peak(self) -> int:
        return 2**20


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the invented code; what it imports is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("gadget", "tiny_peer", "tiny_peer.net"):
        monkeypatch.setitem(sys.modules, name, sys)  # so that it is restored
        del sys.modules[name]
    (tmp_path / "tiny_peer").mkdir()
    (tmp_path / "tiny_peer/net.py").write_text(CODE)
    monkeypatch.setitem(PEERS, "tiny", peer())
    return tmp_path


def measured(checkout: Path, monkeypatch: pytest.MonkeyPatch, tiny: Peer) -> Record:
    monkeypatch.setitem(PEERS, "tiny", tiny)
    for module in ("peers.run", "turns"):
        monkeypatch.setattr(f"emorl.bench.{module}.Worker", InProcess)
    options = Options((), (), 2, "cpu", 1, None, 1e-3, 2**30, (("tiny", checkout),))
    peers_run.check(options)
    return peers_run.run(options, lambda record: None)


def test_both_codes_have_the_same_weights_and_work(checkout: Path) -> None:
    case = Case("tiny", checkout, 16, 2, "cpu")
    ours, theirs = (steps(case, variant) for variant in (OURS, THEIRS))
    assert ours[FORWARD]() == theirs[FORWARD]() == ours[BOTH]() == theirs[BOTH]()
    found = comparison(case)
    parameters = found["parameters"]
    assert parameters[OURS] == parameters[THEIRS] == found["shared_parameters"] > 0
    assert found["macs"][THEIRS] == found["macs"]["ours, as computed"] > 0


def test_a_stand_in_is_found_by_those_who_look_for_its_package(checkout: Path) -> None:
    """As libraries do that can use TensorFlow, if it is there."""
    build("tiny", peer(), checkout, config(16), 1)
    assert importlib.util.find_spec("gadget") is not None


def test_a_record_has_times_and_what_was_compared(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = peer(alternatives={"ours, again": {}}, remarks=("a remark",))
    record = measured(checkout, monkeypatch, tiny)
    assert not record["failures"]
    assert not record["left_out"]
    assert [entry["variant"] for entry in record["cases"]] == [OURS, "ours, again", THEIRS]
    heading, first, second = ratios(record)
    assert first[:2] == ["Tiny, 16x16, batch 2", "ours"]
    assert first[heading.index("forward, memory")] == "1.00x"
    assert first[-2:] == second[-2:] == ["-", "a remark; stand-ins for gadget"]
    assert compared(record)[1][3] == "100%"
    write(checkout / "peers.json", record)
    assert len(tables(suites.read(checkout / "peers.json"))) == 3


def test_losses_that_differ_are_said(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = measured(checkout, monkeypatch, peer(factor=1.01))["failures"]
    assert len(failures) == 2
    assert all("losses differ" in line for line in failures)
    record = measured(checkout, monkeypatch, peer(factor=1.01, differences=("a factor", "more")))
    assert not record["failures"]
    assert ratios(record)[1][-2] == "a factor; more"
    own, other = map(float, compared(record)[1][-2:])
    assert other == pytest.approx(1.01 * own)


def test_code_that_is_not_as_expected_is_one_line(checkout: Path) -> None:
    def made(tiny: Peer) -> None:
        build("tiny", tiny, checkout, config(16), 1)

    with pytest.raises(ValueError, match=r"^--peer tiny: its code needs gadget: not installed$"):
        made(peer(stand_ins={}))
    with pytest.raises(ValueError, match=r"net.py is not as expected: AttributeError: .*'Old'"):
        made(peer(make=lambda code, config, batch: code.Old()))
    (checkout / "tiny_peer/net.py").unlink()
    with pytest.raises(ValueError, match=r"expected a checkout of someone/tiny, no tiny_peer/net"):
        made(peer())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "peers"], "--peer: expected NAME PATH at least once; names: efficientmorl-"),
        (["--peer", "genesis-monte", "."], "unknown genesis-monte; did you mean genesis-monet"),
        (["--peer", "genesis-monet", "NONE"], "expected a checkout of applied-ai-lab/genesis"),
        (["--suite", "paper", "--peer", "baudm-monet", "."], "--peer: is of suite peers"),
        (["--suite", "peers", "--sizes", "64"], "--sizes: suite peers has its own"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_a_dry_run_lists_the_cases(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--peer", "tiny", str(checkout), "--batch", "3", "--dry-run"]) == 0
    assert "| Tiny, 16x16, batch 3 | " in capsys.readouterr().out


def test_weights_are_found_by_shape_and_order() -> None:
    theirs = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 3))
    ours = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(5, 5), nn.Linear(3, 2))
    pairs = in_order(ours, theirs)
    assert copy(pairs) == 2 * (6 + 3) + 6 + 2
    for own, other in ((0, 0), (1, 2), (3, 1)):
        assert ours[own].weight.equal(theirs[other].weight)
        assert ours[own].bias.equal(theirs[other].bias)
    copy(replaced(pairs, ours[1], theirs[2].weight.flip(0)))
    assert ours[1].weight.equal(theirs[2].weight.flip(0))
    assert ours[0].weight.equal(theirs[0].weight)


def test_a_spread_is_the_same_for_every_image() -> None:
    layer = nn.Linear(3, 4)
    means = layer.weight[:2].clone()
    fix_spread(layer, inverse_softplus(0.01))
    spread = F.softplus(layer(torch.randn(5, 3))[:, 2:])
    torch.testing.assert_close(spread, torch.full((5, 2), 0.01))
    assert layer.weight[:2].equal(means)


@pytest.mark.parametrize("name", PEERS)
def test_our_networks_can_have_the_sizes(name: str) -> None:
    for size in PEERS[name].sizes:
        chosen = PEERS[name].config(size)
        (kind,) = [kind for kind in MODELS.values() if isinstance(chosen, kind.Config)]
        with torch.device("meta"):
            kind(chosen)
        assert chosen.image_size == (size, size)
