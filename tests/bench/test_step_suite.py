"""`emorl bench --suite step`: what is planned, fits, tables and plots; once with real models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from emorl.bench import suites, turns
from emorl.bench.figures import STYLES
from emorl.bench.records import machine
from emorl.bench.step import fits, plan
from emorl.bench.step.build import INFERENCE, PARTS, TRAINING, build
from emorl.bench.step.cases import MODELS, Case
from emorl.bench.step.figures import figures
from emorl.bench.step.suite import SUITE, run
from emorl.bench.step.tables import laws, results
from emorl.bench.step.variants import FIRST_ORDER, RELEASED, rounding
from emorl.bench.suite import Options, Record
from emorl.bench.turns import ROUNDING, Turns
from emorl.cli import main
from emorl.report.pictures import picture


def options(budget: float = 60.0, **changes: Any) -> Options:
    chosen: dict[str, Any] = {
        **{"models": SUITE.models, "sizes": SUITE.sizes, "batch": 4, "device": "cpu"},
        **{"threads": 1, "official": Path("there"), "budget": budget, "memory": 2**30},
    }
    return Options(**{**chosen, **changes})


def seconds_of(case: Case, variant: str) -> float:
    """Made up: K^0.5, side^2, 1 + 0.5 I, batch^0.9; the released code three times as long."""
    slow = case.slots**0.5 * (case.size / 35) ** 2 * (1 + 0.5 * case.steps) * case.batch**0.9
    return 1e-3 * slow * (1 + [*MODELS].index(case.model)) * (3 if variant == RELEASED else 1)


def invented(**changes: Any) -> Record:
    """A record of all that is planned, with made-up numbers."""
    asked = options(**changes)
    entries = []
    for work in plan.plan(asked):
        usual = plan.usual(work, asked.device)
        entry = {**asdict(work.case), "part": work.part, "usual": usual, "name": str(work)}
        for variant in plan.variants_of(work, asked):
            s = seconds_of(work.case, variant) * (0.3 if work.part == INFERENCE else 1)
            part = {"first_loss": 1.0, "seconds": [s] * 3, "median": s, "p20": s, "p80": s}
            part["peak_bytes"] = 2**20 * (6 if variant == RELEASED else 2)
            entries.append({**entry, "variant": variant, "parts": {work.part: part}})
    return {
        "suite": "step",
        "date": "2026-11-27 12:00 UTC",
        "machine": {**machine(2), "processor": "Some Processor at 2.5 GHz", "gpu": "Some GPU"},
        "device": asked.device,
        "batch": asked.batch,
        "base_config": plan.BASE,
        "bases": plan.bases(asked.models, asked.batch),
        "interrupted": False,
        "failures": [],
        "left_out": [],
        "cases": entries,
    }


def test_fits_are_exact_where_the_numbers_are() -> None:
    x = (3, 5, 7, 9, 11)
    power = fits.power_law(x, [0.2 * k**1.5 for k in x])
    assert power == pytest.approx((0.2, 1.5))
    assert power.describe("K") == "K^1.50"
    line = fits.line(range(6), [0.4 + 0.1 * i for i in range(6)])
    assert line == pytest.approx((0.4, 0.1))
    assert line.describe("I") == "400 ms + 100 ms I (+25% each)"
    assert fits.Line(1.5, 2.0).describe("I") == "1.5 s + 2 s I (+133% each)"
    assert fits.farthest(line, [(0, 0.4), (1, 0.6)]) == pytest.approx(0.2)
    assert fits.law("slots", [(3, 1.0), (5, 2.0)]) is None
    assert isinstance(fits.law("steps", [(0, 1.0), (1, 2.0), (2, 3.0)]), fits.Line)
    assert isinstance(fits.law("size", [(1, 1.0), (2, 2.0), (4, 3.0)]), fits.Power)


def test_laws_are_those_of_the_record() -> None:
    rows = {tuple(row[:3]): row[3:] for row in laws(invented())}
    assert rows["EfficientMORL", "ours", "K"] == [
        "6",
        "K^0.50",
        "0%",
        "least squares of logarithms",
    ]
    assert rows["MONet", "ours", "side"][:2] == ["6", "side^2.00"]
    assert rows["Slot Attention", "released", "side"][:2] == ["6", "side^2.00"]
    found = rows["EfficientMORL", "released", "I"]
    assert found[0] == "6"
    assert found[1].endswith("(+50% each)")
    assert found[2:] == ["0%", "least squares"]
    assert ("MONet", "ours", "I") not in rows
    assert ("MONet", "released", "K") not in rows


def test_results_are_compared_with_ours() -> None:
    rows = results(invented(models=("slot_attention",)))
    theirs = [row for row in rows if row[7] == RELEASED]
    assert {(row[10], row[12]) for row in theirs} == {("3.00x", "3.00x")}
    assert {row[4] for row in rows[1:]} == {"-"}  # no refinement steps
    case = Case.of("slot_attention", "tetrominoes", 4)
    (row,) = [row for row in theirs if row[1:7] == ["tetrominoes", "35", "4", "-", "4", TRAINING]]
    assert float(row[9]) == pytest.approx(4 / seconds_of(case, RELEASED), rel=0.01)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_plots_are_drawn(device: str) -> None:
    record = invented(device=device)
    drawn = figures(record)
    assert [*drawn] == ["cost", "throughput"]
    for figure in drawn.values():
        assert picture(figure, "png").startswith(b"\x89PNG")
        svg = picture(figure, "svg")
        assert (b"Some GPU" if device == "cuda" else b"Some Processor at 2.5 GHz") in svg
        assert b"Slot Attention, released" in svg
    k, side, i = drawn["cost"].axes
    texts = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (k, side, i)]
    assert texts[0][0] == "EfficientMORL: K^0.50"
    assert texts[1][1] == "EfficientMORL, released: side^2.00"
    assert [len(each) for each in texts] == [7, 7, 3]
    assert all(len(axes.lines) == 2 * len(t) for axes, t in zip((k, side, i), texts, strict=True))
    assert [len(axes.lines) for axes in drawn["throughput"].axes] == [7, 7]
    (curve,) = [
        line for line in drawn["throughput"].axes[0].lines if line.get_color() == STYLES["monet"][0]
    ]
    one, *_, most = zip(*curve.get_data(), strict=True)
    assert most[1] / one[1] == pytest.approx(32**0.1)


def test_plots_of_little_say_what_there_is() -> None:
    record = invented(models=("monet",))
    base = Case.of("monet", plan.BASE, 4)
    record["cases"] = [e for e in record["cases"] if e["name"] == f"{base}, {TRAINING}"]
    drawn = figures(record)
    legend = drawn["cost"].axes[0].get_legend()
    assert legend.get_texts()[0].get_text() == "MONet"
    assert legend.get_lines()[0].get_linestyle() == "None"  # as nothing was fitted
    assert len(drawn["throughput"].axes[1].lines) == 0
    assert laws(record)[1][3:] == ["1", "-", "-", "fewer than 3 points"]
    assert figures({**record, "cases": []}) == {}


def test_models_are_told_apart_without_colours() -> None:
    assert STYLES.keys() == MODELS.keys()
    assert len({style.marker for style in STYLES.values()}) == len(MODELS)


def test_everything_is_listed_for_a_gpu_that_is_not_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "--suite", "step", "--dry-run", "--device", "cuda"]) == 0
    printed = capsys.readouterr().out.splitlines()[2:]
    listed = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in printed]
    cases, variants = {row[:2] for row in listed}, {row[:2]: row[3] for row in listed}
    assert len(cases) == len(listed)
    for model in MODELS:
        for config in ("tetrominoes", "multi_dsprites", "clevr6", "tetrominoes-laptop"):
            for part in PARTS:
                assert (str(Case.of(model, config, 4)), part) in cases
    followed = "Slot MLP, tetrominoes, {0}x{0}, K={1}, batch {2}".format
    for case in (
        *(followed(35, k, 4) for k in (3, 5, 7, 9, 11)),
        *(followed(side, 4, 4) for side in (32, 48, 64, 96, 128)),
        *(followed(35, 4, batch) for batch in (1, 2, 4, 8, 16, 32)),
        *(f"EfficientMORL, tetrominoes, 35x35, K=4, I={i}, batch 4" for i in range(6)),
        *(f"IODINE, tetrominoes, 35x35, K=4, I={i}, batch 4" for i in range(6)),
    ):
        assert (case, TRAINING) in cases
    case = str(Case.of("efficient_morl", "clevr6", 4))
    assert variants[case, TRAINING] == (
        "float32; tf32; bf16; float32 graph; tf32 graph; bf16 graph; tf32 compiled"
    )
    assert variants[case, INFERENCE] == "float32; tf32; bf16; tf32 compiled"
    # RMSProp and Muon are in no graph; what is followed is computed as training does it.
    assert "graph" not in variants[str(Case.of("monet", "clevr6", 4)), TRAINING]
    assert variants[followed(35, 7, 4), TRAINING] == "tf32 graph"


def test_a_small_budget_has_quick_cases_and_some_of_every_figure_first() -> None:
    names = [str(work) for work in plan.plan(options())]
    assert all("laptop" in name for name in names[:10])
    assert names[10] == "EfficientMORL, tetrominoes, 35x35, K=4, I=3, batch 4, training step"
    early = names[: next(n for n, name in enumerate(names) if "multi_dsprites" in name)]
    for place in ("K=3", "K=11", "32x32", "96x96", "I=0", "I=5", "batch 1", "batch 8, inference"):
        assert any(place in name for name in early), place
    on_gpu = [str(work) for work in plan.plan(options(device="cuda", models=("efficient_morl",)))]
    assert [name.split(", ")[1] for name in on_gpu[:3]] == [*plan.PUBLISHED]


def test_models_sizes_and_batch_restrict() -> None:
    found = plan.plan(options(models=("monet",), sizes=(24, 64), batch=2))
    assert {work.case.model for work in found} == {"monet"}
    assert {(work.case.config, work.case.size, work.case.batch) for work in found} == {
        ("tetrominoes", 24, 2),
        ("tetrominoes", 64, 2),
        ("multi_dsprites", 64, 2),
    }


def test_a_size_that_a_network_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BASE", "clevr6")
    with pytest.raises(ValueError, match=r"Slot Attention, clevr6, 40x40.*multiples of 16"):
        plan.check(options(sizes=(40,)))


def test_the_released_code_takes_part_where_it_has_the_network() -> None:
    groups = {group.name: group for group in plan.groups(options())}
    full = groups["EfficientMORL, clevr6, 96x96, K=7, I=3, batch 4, training step"].variants
    assert [*full] == ["float32", "float32 chunked", RELEASED, FIRST_ORDER]
    assert [variant.keep for variant in full.values()] == [True, True, False, False]
    followed = groups["EfficientMORL, tetrominoes, 35x35, K=7, I=3, batch 4, training step"]
    assert [*followed.variants] == ["float32", RELEASED]
    assert [*groups["MONet, clevr6, 128x128, K=7, batch 4, inference"].variants] == ["float32"]
    laptop = [group for name, group in groups.items() if "laptop" in name]
    assert {(*group.variants,) for group in laptop} == {("float32",)}


@pytest.mark.parametrize(
    ("variant", "device", "allowed"),
    [
        ("float32 graph", "cuda", ROUNDING),
        ("tf32 graph", "cuda", 20 * 2**-11),
        ("bf16", "cuda", 20 * 2**-8),
        (RELEASED, "cuda", 20 * 2**-11),
        (FIRST_ORDER, "cuda", 20 * 2**-11),
        (RELEASED, "cpu", ROUNDING),
    ],
)
def test_losses_may_differ_by_their_rounding(variant: str, device: str, allowed: float) -> None:
    assert rounding(variant, device) == allowed


# A checkout whose model has Slot Attention's parameters and a loss of its own.
OTHER_CODE = """
import torch
from torch import nn


def pairs(layer, *sizes):
    return [x for size in sizes for x in (layer(*size), nn.ReLU())]


class SlotAttention(nn.Module):
    def __init__(self, batch_size):
        super().__init__()
        self.pos_embed_projection = nn.Linear(4, 64)
        self.encoder_pt_1 = nn.Sequential(*pairs(nn.Conv2d, (3, 64, 5), *[(64, 64, 5)] * 3))
        self.encoder_pt_2 = nn.Sequential(
            nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)
        )
        self.norm_slots, self.norm_pre_ff = nn.LayerNorm(32), nn.LayerNorm(32)
        self.to_q = nn.Linear(32, 32, bias=False)
        self.to_k, self.to_v = (nn.Linear(64, 32, bias=False) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 32))
        self.gru = nn.GRU(32, 32)
        self.init_slots = nn.Parameter(torch.ones(1, 64))
        self.image_decoder = nn.Module()
        layers = pairs(nn.Conv2d, *[(32, 32, 5)] * 3)
        self.image_decoder.decode = nn.Sequential(*layers, nn.Conv2d(32, 4, 3))
        self.image_decoder.pos_embed_projection = nn.Linear(4, 32)

    def forward(self, images):
        return {"total_loss": self.init_slots.sum()}


class net:
    values = {}
"""


def test_losses_are_compared(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/model.py").write_text(OTHER_CODE)
    chosen = options(models=("slot_attention",), sizes=(35,), batch=1, official=tmp_path)
    name = f"{Case.of('slot_attention', 'tetrominoes', 1)}, {TRAINING}"
    (group,) = [group for group in plan.groups(chosen) if group.name == name]
    record = Turns([group], {}, chosen, lambda record: None, "emorl.bench.step.build")()
    assert [entry["variant"] for entry in record["cases"]] == ["float32", RELEASED]
    assert record["cases"][1]["parts"][TRAINING]["first_loss"] == 64.0
    (failure,) = record["failures"]
    assert failure.startswith(f"{name}, {TRAINING}: losses differ: float32 ")


@pytest.mark.parametrize("model", MODELS)
def test_a_step_trains_and_an_inference_does_not(model: str) -> None:
    case = Case.of(model, "smoke", 2)
    step = build(case, TRAINING, "float32", None, "cpu")[TRAINING]
    losses = []
    for _ in range(3):
        torch.manual_seed(1)
        losses.append(step())
    assert losses[0] > losses[1] > losses[2]
    infer = build(case, INFERENCE, "float32", None, "cpu")[INFERENCE]
    found = set()
    for _ in range(2):
        torch.manual_seed(1)
        found.add(infer())
    assert len(found) == 1


@pytest.mark.slow
def test_a_real_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tiny networks, from the command line to the plots."""
    for name in ("LAPTOP", "BASE"):
        monkeypatch.setattr(plan, name, "smoke")
    monkeypatch.setattr(plan, "PUBLISHED", ())
    monkeypatch.setattr(plan, "AXES", {"slots": (3,), "size": (), "steps": (0,), "batch": (2,)})
    monkeypatch.setattr(turns, "MOST", 3)
    arguments = ["--suite", "step", "--models", "iodine", "--sizes", "24", "32", "35"]
    arguments += ["--batch", "1", "--budget", "2min", "--device", "cpu", "--allow-reference"]
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 0
    record = suites.read(tmp_path / "step.json")
    assert record["left_out"] == record["failures"] == []
    assert len(record["cases"]) == 2 + 1 + 2 + 1 + 2
    part = record["cases"][0]["parts"][TRAINING]
    assert len(part["seconds"]) == 3
    assert part["peak_bytes"] > 0
    assert fits.law("size", fits.points_of(record, "iodine", False, "size")) is not None
    assert "| IODINE | smoke   | 35 " in capsys.readouterr().out
    files = {f"step{name}" for name in (".json", "-cost.png", "-cost.svg")}
    files |= {"step-throughput.png", "step-throughput.svg"}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_a_budget_of_nothing_leaves_out_all_but_the_first() -> None:
    record = run(
        options(models=("slot_mlp",), sizes=(35,), batch=1, official=None, budget=1e-3),
        lambda record: None,
    )
    assert [entry["config"] for entry in record["cases"]] == [plan.LAPTOP]
    assert len(record["left_out"]) == len(plan.plan(options(models=("slot_mlp",), sizes=(35,)))) - 1
    assert all(line.endswith(": no time") for line in record["left_out"])
