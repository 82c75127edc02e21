"""`emorl bench --suite ops`: cases, forms, records, tables and plots; once with a real operator."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from emorl.bench import suites
from emorl.bench.cases.convolution import ConvolutionCase
from emorl.bench.cases.mixture_nll import MixtureNllCase
from emorl.bench.cases.slot_attention import SLOT_ATTENTION_WIDTHS, SlotAttentionCase
from emorl.bench.ops import attention, block, forms, operations, plan, steps
from emorl.bench.ops import operators as ops
from emorl.bench.ops.block import Block
from emorl.bench.ops.cases import Work, all_works
from emorl.bench.ops.figures import STYLES, figures
from emorl.bench.ops.operators import OPERATORS, call
from emorl.bench.ops.tables import VARIANTS, of_works, tables
from emorl.bench.passes import BOTH, FORWARD
from emorl.bench.records import machine, with_quantiles
from emorl.bench.suite import Options, Record
from emorl.bench.tables import MIB
from emorl.bench.turns import WARM_UP
from emorl.cli import main
from emorl.ops.slot_attention import reference
from emorl.report.pictures import picture

TINY = SlotAttentionCase(2, 3, 70, 8, 5)
SPEEDS = {"native": 1.0, "triton": 2.0, "plain": 4.0, "sdpa": 6.0, "compiled": 3.0}
SPEEDS |= {"lucidrains": 4.0, "lucidrains compiled": 3.5}


def options(device: str = "cpu", **changes: Any) -> Options:
    chosen = Options(plan.MODELS, (), 0, device, 1, None, 60.0, 2**30)
    return replace(chosen, **changes)


def invented(device: str = "cpu") -> Record:
    """A record whose numbers are made up: native moves 10 GB/s, the others are slower."""
    cases = []
    for group in plan.groups(options(device))[:24]:
        for name in group.variants:
            parts = {}
            for part in group.parts:
                cost = group.entry.get("costs", {part: {"bytes": 2**24}})[part]
                seconds = SPEEDS[name] * cost["bytes"] / 1e10
                peak = 0 if name == "native" and part == FORWARD else int(SPEEDS[name] * 8 * MIB)
                parts[part] = {"seconds": [seconds] * 3, "first_loss": 1.0, "peak_bytes": peak}
            entry = {"name": group.name, "variant": name, **group.entry, "parts": parts}
            cases.append(with_quantiles(entry))
    return {
        "suite": "ops",
        "date": "2026-11-27 12:00 UTC",
        "machine": {**machine(2), "processor": "Some Processor at 2.5 GHz"},
        "device": "cpu",
        "roof": {"bytes_per_second": 2e10, "operations_per_second": {"float32": 2e11}},
        "interrupted": False,
        "failures": [],
        "left_out": [],
        "cases": cases,
    }


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stands in the way of any form."""
    monkeypatch.setattr(forms, "obstacle", lambda *_: None)
    monkeypatch.setattr(block, "obstacle_of", lambda *_: None)


def test_attention_with_exchanged_roles_is_slot_attention() -> None:
    inputs = {name: x.detach().double() for name, x in TINY.inputs().items()}
    leaves = [inputs[name].requires_grad_() for name in ("q", "k", "v", "logit_bias")]
    plain = reference(*leaves)[0]
    ours = attention.slot_attention(*leaves)
    assert torch.allclose(ours, plain, rtol=0, atol=1e-14)
    weights = torch.linspace(-1, 1, plain.numel(), dtype=torch.float64).view_as(plain)
    gradients = [torch.autograd.grad((x * weights).sum(), leaves) for x in (ours, plain)]
    for own, expected in zip(*gradients, strict=True):
        assert torch.allclose(own, expected, rtol=0, atol=1e-13)


@pytest.mark.skipif(importlib.util.find_spec(block.PACKAGE) is None, reason="not installed")
def test_lucidrains_module_computes_what_ours_does() -> None:
    one = Block(2, 20, 16, 3)
    found = []
    for name in ("native", "lucidrains"):
        module: Any = block.module_of(one, name)
        torch.manual_seed(2)
        found.append(module(torch.linspace(-2, 2, 2 * 20 * 16).view(2, 20, 16)))
    assert torch.allclose(*found, rtol=0, atol=1e-5)


def test_modules_are_timed_in_every_width_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for dtype in dtypes:
        assert {b.width for b in block.BLOCKS if b.dtype == dtype} == {64, 256, 512, 768}
    order = [b.dtype for b in block.BLOCKS]
    assert order == sorted(order, key=dtypes.index)
    monkeypatch.setattr(steps, "keep_memory", lambda: None)
    made = block.steps_of(Block(2, 9, 8, 3, torch.bfloat16), "native", "cpu")
    assert made.keys() == {FORWARD, BOTH}
    assert all(math.isfinite(step().loss) for step in made.values())


@pytest.mark.parametrize("multiplies", [False, True])
def test_float16_needs_a_cpu_that_has_its_products(
    multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "obstacle", lambda *_: None)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_fp16": multiplies})
    narrow = Block(2, 9, 8, 3, torch.float16)
    found = block.obstacle_of(narrow, "native", "cpu")
    assert found is None if multiplies else "no products of float16" in str(found)
    assert block.obstacle_of(narrow, "native", "cuda") is None


@pytest.mark.parametrize(
    "case",
    [TINY, replace(TINY, value_width=None), ConvolutionCase(2, 3, 4, 9, 8, kernel=3, padding=0)],
    ids=str,
)
def test_operations_are_those_that_the_products_have(case: Any) -> None:
    name = "convolution" if isinstance(case, ConvolutionCase) else "slot_attention"
    for part, passes in {FORWARD: 1, BOTH: operations.BOTH_PASSES}.items():
        with FlopCounterMode(display=False) as counter:
            call(lambda x: OPERATORS[name].plain(case, x), case.inputs(), part)
        assert passes * OPERATORS[name].operations(case) == counter.get_total_flops()
        assert Work(name, case, torch.float32).cost(part).operations == counter.get_total_flops()


@pytest.mark.parametrize(
    ("kind", "of_pixel"),
    [
        ("gaussian", 2 * (3 + 3 * 3) + 3 * (2 * 2 + 4)),
        ("mixture", 2 * (3 + 3 * 3) + 2 * (9 + 9) + 6),
        ("mixture_joint", 2 * (3 + 3 * 3) + 2 * (9 + 2 + 3) + 2),
    ],
)
def test_operations_of_the_likelihood(kind: Any, of_pixel: int) -> None:
    """With 2 slots and 3 colours, counted by hand."""
    assert operations.mixture_nll(MixtureNllCase(1, 2, 1, 1, kind=kind)) == of_pixel


@pytest.mark.parametrize(
    ("name", "case"),
    [("slot_attention", TINY), ("mixture_nll", MixtureNllCase(2, 3, 9, 9))],
    ids=["slot_attention", "mixture_nll"],
)
def test_costs_are_those_of_real_tensors(name: str, case: Any) -> None:
    inputs = case.inputs()
    results = call(lambda x: OPERATORS[name].plain(case, x), inputs, BOTH)
    moved = OPERATORS[name].bytes_moved(inputs, *results)
    assert Work(name, case, torch.float32).cost(BOTH).bytes == moved


def test_first_comes_what_says_most(everything: None) -> None:
    names = [group.name for group in plan.groups(options())]
    count = len(plan.MODELS)
    assert [name.split()[0] for name in names[:count]] == [*plan.MODELS]
    assert [name.removesuffix(", compiled") for name in names[count : 2 * count]] == names[:count]
    compiled = [name.endswith(", compiled") for name in names[2 * count :]]
    assert compiled == sorted(compiled)
    assert len(names) == len({*names}) == 2 * (len(all_works("cpu")) + len(block.BLOCKS))


def test_slot_attention_has_every_width_with_every_number_of_inputs() -> None:
    sizes = {(case.key_width, case.value_width, case.pixels) for case in SLOT_ATTENTION_WIDTHS}
    assert len(sizes) == len(SLOT_ATTENTION_WIDTHS) == 16
    for device in ("cpu", "cuda"):
        timed = {work.case for work in all_works(device) if work.operator == "slot_attention"}
        assert timed >= {*SLOT_ATTENTION_WIDTHS}


def test_a_dry_run_lists_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--suite", "ops", "--dry-run", "--device", "cuda"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == len(all_works("cuda")) + len(block.BLOCKS)
    for work in all_works("cuda"):
        (line,) = [line for line in lines if f"| {work} " in line]
        assert "plain" in line
        assert ("triton" in line) == (work.operator != "convolution")
        assert ("sdpa" in line) == (work.operator == "slot_attention")
    assert {str(work.dtype) for work in all_works("cuda")} == {
        f"torch.{name}" for name in ("float32", "bfloat16", "float16")
    }


def test_what_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(forms, "backends", lambda device: {name: {} for name in OPERATORS})
    monkeypatch.setattr(block, "_multiplies_float16", lambda: True)  # else there are more lines
    chosen = options(models=("convolution", block.NAME))
    lines = plan.obstacles(chosen)
    why = "torch.compile finds no C++ compiler: no-such-compiler"
    assert lines == [
        f"convolution, compiled: {why}",
        f"{block.NAME}, lucidrains: not installed; pip install slot-attention",
        f"{block.NAME}, compiled: {why}",
        f"{block.NAME}, lucidrains compiled: {why}",
    ]
    names = {name for group in plan.groups(chosen) for name in group.variants}
    assert names == {"native", "plain"}


def test_wide_slots_have_no_kernels_on_a_gpu() -> None:
    wide, narrow = (SlotAttentionCase(2, 7, 196, width, width) for width in (512, 256))
    why = forms.obstacle("native", "slot_attention", "cuda", wide)
    assert why == "widths of more than 256 have no kernels on a GPU"
    assert forms.obstacle("native", "slot_attention", "cuda", narrow) != why
    assert forms.obstacle("plain", "slot_attention", "cuda", wide) is None
    assert block.obstacle_of(Block(2, 9, 512, 7), "native", "cuda") == why


def test_ratios_are_to_the_first_variant_of_the_group(everything: None) -> None:
    record = invented()
    results = {(result.entry["work"], result.part): result for result in of_works(record)}
    works = [str(work) for work in all_works("cpu")]
    first = results[works[0], BOTH]
    assert first.time == {name: pytest.approx(SPEEDS[name]) for name in OPERATORS_FORMS}
    assert first.memory == first.time
    assert results[works[0], FORWARD].memory == {}  # nothing to be a share of
    times, memories, roof = tables(record)
    row = next(row for row in times if row[:2] == [works[0], BOTH])
    cells = dict(zip(times[0], row, strict=True))
    assert "(4.00x)" in cells["plain, ms"]
    assert cells["lucidrains, ms"] == "-"
    assert (cells["GB/s"], cells["of a copy's"], cells["timings"]) == ("10", "50 %", "3")
    assert dict(zip(memories[0], memories[2], strict=True))["plain, MiB"] == "32.0 (4.00x)"
    assert roof[1:] == [
        ["bytes", "a large copy", "20 GB"],
        ["operations, float32", "a matrix product", "200 G"],
    ]


OPERATORS_FORMS = forms.forms_of("slot_attention", "cpu")


def test_plots_are_drawn(everything: None) -> None:
    record = invented()
    drawn = figures(record)
    assert [*drawn] == [*(f"speed-{name}-float32" for name in plan.MODELS), "roofline"]
    assert picture(drawn["roofline"], "png").startswith(b"\x89PNG")
    for figure in drawn.values():
        assert b"Some Processor at 2.5 GHz, 2 threads; 2026-11-27" in picture(figure, "svg")
    bars = drawn["speed-slot_attention-float32"].axes[1].patches
    assert max(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx(4.0)
    assert min(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx(4 / 6)
    assert figures({**record, "cases": []}) == {}


def test_forms_are_told_apart_without_colours() -> None:
    assert [*STYLES] == [*VARIANTS]
    for kind in ("lucidrains", ""):
        own = [s for name, s in STYLES.items() if not kind or kind in name]
        alike = 2 if not kind else 0  # plain PyTorch and lucidrains are in no one figure
        assert len({style.hatch for style in own}) >= len(own) - alike


def test_a_kernel_that_is_wrong_has_no_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = replace(OPERATORS["slot_attention"], fused=lambda *_: torch.zeros(2, 3, 5))
    monkeypatch.setitem(OPERATORS, "slot_attention", wrong)
    work = Work("slot_attention", TINY, torch.float32)
    monkeypatch.setattr(steps, "LEAST_SECONDS", 1e-4)
    monkeypatch.setattr(steps, "keep_memory", lambda: True)
    found = steps.steps_of(work, "native", "cpu", [FORWARD])
    assert math.isnan(found[FORWARD]().loss)
    assert f"{work}, forward, native: output: error" in capsys.readouterr().err


def test_a_loss_shows_an_error_of_any_result() -> None:
    def results(small: float) -> ops.Results:
        return ops.Results(torch.ones(3), [1e6 * torch.ones(9), torch.full((2,), small)])

    assert steps.loss_of(results(1e-6)) == pytest.approx((3**0.5 * 3e6 * 2**0.5 * 1e-6) ** (1 / 3))
    assert steps.loss_of(results(1.01e-6)) / steps.loss_of(results(1e-6)) > 1.003
    assert steps.loss_of(results(0.0)) == 0.0


def test_a_gpus_memory_is_that_of_single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the inputs, for replays, come after the peaks have been taken down."""
    copies: list[int] = []

    class FakeReplays:
        def __init__(self, calls: list[Any]) -> None:
            copies.append(len(calls))
            self.seconds: list[float] = []

        def round(self) -> None:
            self.seconds.append(0.25)

    monkeypatch.setattr(steps, "Replays", FakeReplays)
    monkeypatch.setattr(steps, "cache_bytes", lambda: 100)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    calls: list[Tensor] = []
    step = steps._OnGpu(lambda x: calls.append(x["x"]), {"x": torch.ones(2)}, steps.Seen(7.0, 80))
    for _ in range(WARM_UP):
        assert step().loss == 7.0
    assert (len(calls), copies) == (5, [])
    assert step() == (0.25, 7.0)
    assert (len(calls), copies) == (5, [5])  # 4 times the cache


def test_a_real_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One small operator in every form but the compiled one, from the command line to the plots."""
    small = replace(OPERATORS["slot_attention"], cases=[SlotAttentionCase(2, 3, 4000, 16, 16)])
    monkeypatch.setitem(OPERATORS, "slot_attention", small)
    monkeypatch.setattr("emorl.bench.ops.peaks.COPIED", 2**18)
    monkeypatch.setattr(forms, "compiler_obstacle", lambda device: "not now")
    monkeypatch.setattr(steps, "LEAST_SECONDS", 0.001)
    arguments = ["bench", "--suite", "ops", "--models", "slot_attention", "--device", "cpu"]
    arguments += ["--budget", "2min", "--html", "--allow-reference", "--out", str(tmp_path)]
    assert main(arguments) == 0
    record = suites.read(tmp_path / "ops.json")
    can_run = record["backends"]["slot_attention"]
    expected = ["native"] * ("native" in can_run) + ["plain", "sdpa"]
    assert [entry["variant"] for entry in record["cases"]] == expected
    for entry in record["cases"]:
        assert [len(entry["parts"][part]["seconds"]) for part in (FORWARD, BOTH)] == [9, 9]
        assert entry["parts"][FORWARD]["median"] > 0
    assert not record["failures"]
    losses = [entry["parts"][BOTH]["first_loss"] for entry in record["cases"]]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)
    assert "slot_attention, compiled: not now" in record["left_out"]
    assert (tmp_path / "ops.html").read_text().count("data:image/png") == 2
