"""`emorl bench --suite paper`: planning, records, tables and plots; once with a real model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import nn

from emorl.bench import released, suites
from emorl.bench.budget import ENOUGH, Item
from emorl.bench.page import page
from emorl.bench.paper import cases as paper
from emorl.bench.paper import run as paper_run
from emorl.bench.paper.cases import MODELS, OURS, RELEASED, Case
from emorl.bench.paper.claims import checklist
from emorl.bench.paper.figures import STYLES, figures
from emorl.bench.paper.plan import batch_item, items_of
from emorl.bench.paper.tables import against_released, by_case, pairs, results
from emorl.bench.passes import BOTH, FORWARD, PARTS
from emorl.bench.records import commit, machine, write
from emorl.bench.suite import Options
from emorl.bench.tables import ratios
from emorl.bench.workers import Worker
from emorl.cli import main
from emorl.models import SlotAttentionConfig, SlotAttentionModel
from emorl.report.pictures import picture


def part(seconds: float, mebibytes: int, timings: int = 3) -> dict[str, Any]:
    quantiles = {"median": seconds, "p20": 0.9 * seconds, "p80": 1.2 * seconds}
    return {"seconds": [seconds] * timings, **quantiles, "peak_bytes": mebibytes * 2**20}


def invented(models: tuple[str, ...] = tuple(MODELS)) -> dict[str, Any]:
    """A record whose numbers are made up: n-th model n times as slow, released 4 times."""
    cases = []
    for case in paper.cases(models, (64, 96, 128), 4, with_released=True):
        slow = (1 + [*MODELS].index(case.model)) * (case.size / 64) ** 2
        slow *= 4 if case.code == RELEASED else 1
        parts = {FORWARD: part(0.2 * slow, int(50 * slow)), BOTH: part(0.5 * slow, int(90 * slow))}
        largest_batch = {"images": int(2000 / slow)}
        cases.append(
            {**case._asdict(), "first_loss": 1.0, "parts": parts, "largest_batch": largest_batch}
        )
    return {
        "suite": "paper",
        "date": "2026-11-27 12:00 UTC",
        "machine": {**machine(2), "processor": "Some Processor at 2.5 GHz"},
        "device": "cpu",
        "dtype": "float32",
        "batch": 4,
        "slots": 7,
        "memory_limit": 11 * 2**30,
        "interrupted": False,
        "failures": [],
        "left_out": [],
        "cases": cases,
    }


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "paper.json", invented())
    assert suites.read(tmp_path / "paper.json") == json.loads(json.dumps(invented()))


def test_tables_have_the_ratios_of_models_and_codes() -> None:
    record = invented()
    assert len(results(record)) == 1 + len(record["cases"])
    rows = {(row[0], row[1], row[2]): row[3:] for row in pairs(record)}
    # E-0 is the second model, IODINE the first; Slot Attention the third, E-1 the fourth.
    assert rows["IODINE / E-0", FORWARD, "128"] == ["0.50x", "-"]
    assert rows["Slot Attention / E-1", FORWARD, "64"] == ["0.75x", "0.75x"]
    assert against_released(record)[1][:4] == ["E-0", "64", "4.00x", "4.00x"]


def test_the_checklist_has_a_verdict_for_each_claim_of_the_paper() -> None:
    record = invented()
    for entry in record["cases"]:  # as in the paper, but for E-1's forward pass
        name, times = entry["model"], {FORWARD: 1.0, BOTH: 2.0}
        if name == "iodine":
            times = {FORWARD: 10.0, BOTH: 12.0}
        if name == "e-1" and entry["code"] == OURS:
            times = {FORWARD: 3.0, BOTH: 6.0}
        for part, seconds in times.items():
            entry["parts"][part]["median"] = seconds
        images = {"iodine": 10, "e-3": 9, "e-3-s": 18}.get(name, 40 if name.endswith("s") else 20)
        entry["largest_batch"] = {"images": images}
    rows = checklist(record)[1:]
    assert [row[2] for row in rows] == [
        *("10.00x", "6.00x", "1.00x to 3.00x", "1.80x to 4.00x", "2.00x to 2.00x"),
        "6.00x to 10.00x",
    ]
    assert rows[2][3] == "1.00x to 1.00x"  # the released code's
    yes, no = "reproduced", "not reproduced"
    assert [row[-1] for row in rows] == [yes, yes, no, yes, yes, no]
    first, *others = (entry for entry in record["cases"] if entry["model"] == "iodine")
    del first["largest_batch"]  # at other sizes it is known
    assert [row[-1] for row in checklist(record)[1:]][3:5] == [yes, yes]
    for entry in others:
        del entry["largest_batch"]
    assert [row[-1] for row in checklist(record)[1:]][3:5] == ["not testable", yes]
    nothing = {**record, "cases": []}
    assert {row[-1] for row in checklist(nothing)[1:]} == {"not testable"}


def test_two_records_are_compared_case_by_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = invented(("e-0", "monet")), invented(("e-0", "iodine"))
    for entry in after["cases"]:
        entry["parts"] = {
            name: {**p, "median": p["median"] / 2} for name, p in entry["parts"].items()
        }
    rows = ratios(by_case(before), by_case(after))
    assert rows[1] == ["E-0, ours, 64x64, batch 4", FORWARD, "0.4", "0.2", "0.50x", "1.00x"]
    only = [row[0] for row in rows if row[1] == "only in one"]
    assert [name.split(",")[0] for name in only] == ["IODINE"] * 3 + ["MONet"] * 3

    for name, record in {"a": before, "b": after}.items():
        write(tmp_path / f"{name}.json", record)
    assert main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "0.50x" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no case in common"):
        ratios(by_case(invented(("monet",))), by_case(invented(("iodine",))))


@pytest.mark.parametrize("by_batch", [True, False])
def test_plots_are_drawn(by_batch: bool) -> None:
    record = invented()
    if not by_batch:
        del record["cases"][0]["largest_batch"]
    drawn = figures(record)
    assert [*drawn] == ["time-and-memory", "forward-and-backward"]
    for figure in drawn.values():
        assert picture(figure, "png").startswith(b"\x89PNG")
        svg = picture(figure, "svg")
        assert b"Some Processor at 2.5 GHz, 2 threads; 2026-11-27" in svg
        assert b"Slot Attention" in svg
    label = drawn["time-and-memory"].axes[0].get_ylabel()
    assert label.startswith("largest batch in 11 GiB" if by_batch else "peak memory, MiB")
    lines = [line for axes in drawn["time-and-memory"].axes for line in axes.lines]
    assert len(lines) == 2 * (10 + 4)
    assert figures({**record, "cases": []}) == {}


def test_models_are_told_apart_without_colours() -> None:
    assert STYLES.keys() == MODELS.keys()
    assert len({style.marker for style in STYLES.values()}) == len(MODELS)


def test_a_page_needs_no_other_file() -> None:
    text = page("t", "<c>", {"plot": b"png"}, [[["a"], ["<b>"]]], ["note & note"])
    assert "&lt;c&gt;" in text
    assert "<td>&lt;b&gt;</td>" in text
    assert "data:image/png;base64,cG5n" in text
    assert "note &amp; note" in text
    assert 'src="http' not in text


def test_cases_by_importance_and_in_turns() -> None:
    models = ("iodine", "e-0", "slot-attention", "monet")
    cases = paper.cases(models, (64, 96), 4, with_released=True)
    assert [str(case) for case in cases[:7]] == [
        "IODINE, ours, 64x64",
        "E-0, ours, 64x64",
        "Slot Attention, ours, 64x64",
        "MONet, ours, 64x64",
        "E-0, released, 64x64",
        "Slot Attention, released, 64x64",
        "IODINE, ours, 96x96",
    ]
    groups = [[str(case) for case in group] for group in paper.groups(cases)]
    assert groups[0] == ["IODINE, ours, 64x64", "E-0, ours, 64x64", "E-0, released, 64x64"]
    assert len(groups) == 6


@pytest.mark.parametrize("model", MODELS)
def test_networks_are_those_of_the_paper(model: str) -> None:
    config: Any = paper.network(model, 64)
    assert (config.image_size, config.num_slots, config.slot_dim) == (
        (64, 64),
        7,
        16 if model == "monet" else 64,
    )
    if model.startswith("e-"):
        assert config.refinement_steps == int(model[2])
        assert config.decoder == ("big" if model.endswith("-s") else "iodine")
    if model == "iodine":
        assert config.refinement_steps == 4  # 5 inference steps
    if model == "slot-attention":
        assert (config.variant, config.decoder) == ("efficient_morl", "big")


class FakeWorker:
    """Stands in for a process: steps take a second each, the released code's two."""

    def __init__(self, case: Case | None, steps: list[tuple[Case, str]]) -> None:
        self.case, self.steps = case, steps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, name: str) -> tuple[float, float]:
        assert self.case is not None
        self.steps.append((self.case, name))
        return 2.0 if self.case.code == RELEASED else 1.0, 7.0

    def peak(self) -> int:
        assert self.case is not None
        return 2**20 * (10 + self.case.batch)

    def call(self, function: Callable[[], Any]) -> Any:
        if isinstance(function, partial):  # a survey
            return paper.Survey(0.0, dict.fromkeys(PARTS, 0.01), ["mixture_nll"])
        return None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Case, str]]:
    """The steps that were run, by fake processes."""
    found: list[tuple[Case, str]] = []

    def fake(case: Case, options: Options) -> FakeWorker:
        return FakeWorker(case, found)

    for module in ("paper.run", "paper.timing"):
        monkeypatch.setattr(f"emorl.bench.{module}.worker_of", fake)
        monkeypatch.setattr(
            f"emorl.bench.{module}.survey_worker", lambda options: FakeWorker(None, found)
        )
    return found


def options(budget: float = 60.0, **changes: Any) -> Options:
    chosen: dict[str, Any] = {
        **{"models": ("e-0", "e-1"), "sizes": (64, 128), "batch": 4, "device": "cpu"},
        **{"threads": 1, "official": Path("there"), "budget": budget, "memory": 2**30},
    }
    return Options(**{**chosen, **changes})


def test_a_run_measures_all(steps: list[tuple[Case, str]]) -> None:
    records: list[dict[str, Any]] = []
    record = paper_run.run(options(), records.append)
    assert records[-1] == record
    assert len(record["cases"]) == 8
    entry = record["cases"][0]
    assert (entry["model"], entry["code"], entry["size"]) == ("e-0", OURS, 64)
    assert len(entry["parts"][BOTH]["seconds"]) == 9
    assert entry["parts"][BOTH]["median"] == 1.0
    # The line is 10 MiB and 1 MiB an image, and 1 GiB the limit.
    assert entry["largest_batch"]["images"] == 1014
    assert record["operators"] == {"e-0": ["mixture_nll"], "e-1": ["mixture_nll"]}
    assert record["left_out"] == [] or all("confirming" in line for line in record["left_out"])
    assert not record["failures"]
    assert not record["interrupted"]
    timed = [(case.model, case.code, name) for case, name in steps if case.size == 64][4:8]
    assert timed == [  # after the warm-up of both codes, in turns
        *(("e-0", OURS, name) for name in PARTS),
        *(("e-0", RELEASED, name) for name in PARTS),
    ]


def test_an_interrupted_run_keeps_what_it_has(
    steps: list[tuple[Case, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = FakeWorker.step

    def interrupted(self: FakeWorker, name: str) -> tuple[float, float]:
        if self.case and self.case.size == 128 and len(steps) > 50:
            raise KeyboardInterrupt
        return step(self, name)

    monkeypatch.setattr(FakeWorker, "step", interrupted)
    arguments = ["--models", "e-0", "e-1", "e-3", "--sizes", "64", "128", "--budget", "60s"]
    code = main(["bench", *arguments, "--out", str(tmp_path), "--allow-reference"])
    assert code == 130
    assert "interrupted; what was measured is kept" in capsys.readouterr().err
    record = suites.read(tmp_path / "paper.json")
    assert record["interrupted"]
    assert {case["size"] for case in record["cases"]} == {64}
    assert "E-3, ours, 128x128: interrupted" in record["left_out"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".svg"}


def test_a_budget_that_is_too_small_leaves_out_what_it_says(
    steps: list[tuple[Case, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FakeWorker,
        "call",
        lambda self, _: paper.Survey(0.0, dict.fromkeys(PARTS, 1.0), []),
    )
    record = paper_run.run(options(budget=60.0, sizes=(64, 1024)), lambda record: None)
    # A timing of four images is 8 s, one of the larger images 2048 s.
    assert {case["size"] for case in record["cases"]} == {64}
    assert "E-1, ours, 1024x1024: no time" in record["left_out"]
    assert not record["failures"]
    with pytest.raises(ValueError, match="the least of this suite takes about"):
        paper_run.run(options(budget=ENOUGH, sizes=(64, 128, 1024)), lambda record: None)


def test_losses_that_differ_and_processes_that_die_are_named(
    steps: list[tuple[Case, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: FakeWorker, name: str) -> tuple[float, float]:
        assert self.case is not None
        if self.case.model == "e-1":
            raise EOFError
        return 1.0, 7.0 if self.case.code == OURS else 7.1

    monkeypatch.setattr(FakeWorker, "step", step)
    record = paper_run.run(options(), lambda record: None)
    assert record["failures"] == [f"e-0 at {s}: losses differ: 7.0, 7.1" for s in (64, 128)]
    assert "E-1, ours, 64x64: its process died" in record["left_out"]
    assert {case["model"] for case in record["cases"]} == {"e-0"}


def test_items_cost_what_was_surveyed() -> None:
    case = Case("e-0", OURS, 64, 4)
    survey = paper.Survey(0.5, {FORWARD: 1.0, BOTH: 2.0}, []).scaled(2.0)
    first, second = items_of({case: survey}, start=3.0, device="cpu")
    assert first == Item(str(case), start=3.5 + 24.0, each=24.0, least=3, most=9)
    assert second == Item(batch_item(case), start=2 * 3.5 + 3 * 6.0, each=0.0, least=0, most=1)


def test_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One model on tiny images, from the command line to the plots."""
    arguments = ["--models", "e-0", "--sizes", "16", "--batch", "2", "--budget", "3min"]
    arguments += ["--memory", "64MiB", "--device", "cpu", "--html", "--allow-reference"]
    assert main(["bench", *arguments, "--out", str(tmp_path)]) == 0
    (entry,) = suites.read(tmp_path / "paper.json")["cases"]
    assert len(entry["parts"][BOTH]["seconds"]) == 9
    assert entry["parts"][FORWARD]["median"] > 0
    peaks = [entry["parts"][name]["peak_bytes"] for name in PARTS]
    assert 0 < peaks[0] <= peaks[1] < 2**30
    assert entry["largest_batch"]["images"] > 0
    printed = capsys.readouterr().out
    assert "| E-0   | ours | 16 " in printed
    assert (tmp_path / "paper.html").read_text().count("data:image/png") == 2


def _double() -> float:
    return 2.0


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ("--sizes 64 99999999999", "4 images of 99999999999x99999999999 would take 4.8e+05 EB"),
        ("--batch 99999999999", "99999999999 images of 64x64 would take 4.92 PB"),
        ("--suite step --sizes 99999999999", "4 images of 99999999999x99999999999 would take"),
    ],
)
def test_images_beyond_all_memory_are_named(
    options: str, images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options.split(), "--dry-run"]) == 2
    assert f"bench: --sizes and --batch: {images}" in capsys.readouterr().err


def test_a_worker_leaves_ctrl_c_to_its_owner() -> None:
    with Worker(partial(dict, a=_double), threads=1, preload="emorl.bench.workers") as worker:
        assert worker.step("a")[1] == 2.0
        os.kill(worker._process.pid, signal.SIGINT)
        assert worker.step("a")[1] == 2.0
        assert worker.call(_double) == 2.0


def test_commit_is_a_hash_or_none() -> None:
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40


class ReleasedSlotAttention(nn.Module):
    """Parameters as the released Slot Attention names them."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed_projection = nn.Linear(4, 64)
        pairs = [(3, 64), (64, 64), (64, 64), (64, 64)]
        self.encoder_pt_1 = nn.Sequential(
            *[layer for a, b in pairs for layer in (nn.Conv2d(a, b, 5), nn.ReLU())]
        )
        self.encoder_pt_2 = nn.Sequential(
            nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)
        )
        self.norm_slots, self.norm_pre_ff = nn.LayerNorm(64), nn.LayerNorm(64)
        self.to_q, self.to_k, self.to_v = (nn.Linear(64, 64, bias=False) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        self.gru = nn.GRU(64, 64)
        self.init_slots = nn.Parameter(torch.cat([torch.zeros(1, 64), torch.ones(1, 64)], 1))
        self.image_decoder = nn.Module()
        self.image_decoder.decode = nn.Sequential(
            *[layer for _ in range(5) for layer in (nn.ConvTranspose2d(64, 64, 5), nn.ReLU())],
            nn.ConvTranspose2d(64, 4, 3),
        )
        self.image_decoder.pos_embed_projection = nn.Linear(4, 64)


def test_our_slot_attention_takes_the_released_weights() -> None:
    theirs = ReleasedSlotAttention()
    config = SlotAttentionConfig(image_size=(32, 32), variant="efficient_morl")
    model = released.our_slot_attention(theirs, config)
    assert isinstance(model, SlotAttentionModel)
    assert torch.equal(model.attention.norm_mlp.weight, theirs.norm_pre_ff.weight)
    assert torch.equal(model.attention.key.weight, theirs.to_k.weight)
    assert torch.equal(model.attention.gru.bias_hh, theirs.gru.bias_hh_l0)
    assert torch.equal(model.initial_slots.raw, theirs.init_slots[:, 64:])
    assert torch.equal(model.decoder.output.weight, theirs.image_decoder.decode[10].weight)
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in model.parameters()) == count
