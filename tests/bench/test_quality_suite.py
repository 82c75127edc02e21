"""`emorl bench --suite quality`: planning, curves and tables; once with a real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from emorl.bench import suites
from emorl.bench.figures import STYLES
from emorl.bench.quality import run as quality
from emorl.bench.quality import training
from emorl.bench.quality.figures import figures
from emorl.bench.quality.run import MOMENTS, TITLES
from emorl.bench.quality.tables import by_case, results
from emorl.bench.quality.training import CONFIG, Start, laptop, planned, stage, trained
from emorl.bench.records import machine, write
from emorl.bench.suite import Options
from emorl.cli import main
from emorl.models import MODELS
from emorl.report.pictures import picture

GOOD = {"fg_ari": 0.9, "fg_miou": 0.3, "mse": 0.01}


def invented(models: tuple[str, ...] = tuple(TITLES)) -> dict[str, Any]:
    """A record whose numbers are made up: the n-th model learns n times as slowly."""
    cases = []
    for n, model in enumerate(models, start=1):
        points: list[dict[str, Any]] = []
        for moment in range(MOMENTS + 1):
            learned = 1 - 0.5 ** (moment / n)
            metrics = {"fg_ari": 0.95 * learned, "fg_miou": 0.2, "mse": 0.2 * 0.3 ** (moment / n)}
            points.append({"step": 100 * moment, "minutes": 0.7 * moment, "generated": metrics})
        points[-1]["real"] = {**GOOD, "fg_ari": 0.87}
        cases.append(
            {
                **{"model": model, "seed": 0, "slots": 4, "batch": 8, "planned_steps": 600},
                **{"images": {"generated": 64}, "images_at_end": {"generated": 320, "real": 10}},
                "points": points,
            }
        )
    return {
        "suite": "quality",
        "date": "2026-11-27 12:00 UTC",
        "machine": {**machine(2), "processor": "Some Processor at 2.5 GHz"},
        "device": "cpu",
        "config": CONFIG,
        "interrupted": False,
        "failures": [],
        "left_out": [],
        "cases": cases,
    }


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "quality.json", invented())
    assert suites.read(tmp_path / "quality.json") == json.loads(json.dumps(invented()))


def test_the_table_has_the_last_measurement() -> None:
    rows = results(invented())
    assert len(rows) == 1 + len(MODELS)
    assert rows[1][:6] == ["EfficientMORL", "4", "0", "4.20", "600", "320"]
    assert rows[1][6:] == ["0.935", "0.200", "0.0001", "0.870"]
    record = invented(("monet",))
    del record["cases"][0]["points"][-1]  # as if it were interrupted
    (row,) = results(record)[1:]
    assert row[4:6] == ["500 of 600", "64"]
    assert row[-1] == "-"
    assert by_case(invented())["MONet, batch 8"]["training step"]["median"] == pytest.approx(0.42)


def test_two_records_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = invented(("monet",)), invented(("monet",))
    after["cases"][0]["points"][-1]["minutes"] /= 2
    for name, record in {"a": before, "b": after}.items():
        write(tmp_path / f"{name}.json", record)
    assert main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "| 0.42 | 0.21 | 0.50x     | -  " in capsys.readouterr().out


def test_the_plot_is_drawn() -> None:
    (figure,) = figures(invented()).values()
    left, right = figure.axes
    assert [len(axes.lines) for axes in (left, right)] == [5, 5]
    assert (left.get_ylabel(), right.get_yscale()) == ("FG-ARI; higher is better", "log")
    svg = picture(figure, "svg")
    assert b"Some Processor at 2.5 GHz, 2 threads; 2026-11-27" in svg
    assert b"tetrominoes-laptop, seed 0" in svg
    assert picture(figure, "png").startswith(b"\x89PNG")
    assert figures({**invented(), "cases": []}) == {}


def test_all_models_are_there_and_told_apart_without_colours() -> None:
    assert TITLES.keys() == MODELS.keys() == STYLES.keys()
    assert len({style.marker for style in STYLES.values()}) == len(MODELS)


def test_what_would_run_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--suite", "quality", "--dry-run", "--device", "cuda"]) == 0
    printed = capsys.readouterr().out
    assert all(title in printed for title in TITLES.values())
    assert "| cuda   | 8     | 4 " in printed  # 20 minutes for five models


@pytest.mark.parametrize(
    "option", ["--sizes 64", "--batch 4", "--memory 1GiB", "--official there"], ids=str.split
)
def test_options_without_a_meaning_are_refused(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--suite", "quality", *option.split()]) == 2
    line = capsys.readouterr().err
    assert f"{option.split()[0]}: suite quality has " in line


class FakeWorker:
    """Stands in for a process: a step takes a minute, measuring an image ten seconds."""

    def __init__(self, *_: object) -> None:
        self.calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, function: Callable[[], Any]) -> Any:
        assert isinstance(function, partial)
        if function.func is training.start:
            return Start({"generated": GOOD}, 10.0, 60.0)
        config, _, minutes, images = function.args
        self.calls += 1
        done = {
            "step": config.trainer.steps * self.calls // MOMENTS,
            "minutes": self.calls * minutes,
        }
        return {**done, **dict.fromkeys(images, GOOD)}


def options(**changes: Any) -> Options:
    chosen: dict[str, Any] = {
        **{"models": ("slot_attention", "monet"), "sizes": (), "batch": 0, "device": "cpu"},
        **{"threads": 1, "official": None, "budget": 240_000.0, "memory": 2**30},
    }
    return Options(**{**chosen, **changes})


def test_a_run_measures_every_model_at_several_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "Worker", FakeWorker)
    records: list[dict[str, Any]] = []
    record = quality.run(options(), records.append)
    assert records[-1] == record
    assert [entry["model"] for entry in record["cases"]] == ["slot_attention", "monet"]
    entry = record["cases"][0]
    assert len(entry["points"]) == 1 + MOMENTS
    assert entry["points"][-1].keys() >= {"generated", "real"}
    # Half the budget, less 650 images.
    assert entry["planned_steps"] == pytest.approx(0.96 * (120_000 - 6500) / 60, abs=5)
    assert not record["failures"]
    assert not record["left_out"]


def test_a_training_that_is_done_early_is_measured_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[dict[str, int]] = []

    def quick(self: FakeWorker, function: Callable[[], Any]) -> Any:
        assert isinstance(function, partial)
        if function.func is training.start:
            return Start({"generated": GOOD}, 10.0, 60.0)
        config, _, _, images = function.args
        measured.append(images)
        return {"step": config.trainer.steps, "minutes": 1.0, **dict.fromkeys(images, GOOD)}

    monkeypatch.setattr(quality, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "call", quick)
    (entry,) = quality.run(options(models=("monet",)), lambda record: None)["cases"]
    assert [[*images] for images in measured] == [["generated"], ["generated", "real"]]
    assert [point["step"] for point in entry["points"]] == [0, entry["planned_steps"]]
    assert "real" in entry["points"][-1]


def test_little_time_means_fewer_images_and_no_time_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "Worker", FakeWorker)
    record = quality.run(options(budget=13_000.0), lambda record: None)  # half for 650 images
    entry = record["cases"][0]
    assert entry["images"]["generated"] == pytest.approx(32, abs=1)
    assert entry["images_at_end"] == {"generated": pytest.approx(160, abs=1), "real": 8}
    record = quality.run(options(budget=600.0), lambda record: None)
    assert record["left_out"][0] == f"Slot Attention: no time for {MOMENTS} steps"
    assert record["failures"] == ["no model was trained: --budget has no time for it"]


def test_an_interrupted_run_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = FakeWorker.call

    def interrupted(self: FakeWorker, function: Callable[[], Any]) -> Any:
        if isinstance(function, partial) and function.args[0].model == "iodine" and self.calls == 2:
            raise KeyboardInterrupt
        return call(self, function)

    monkeypatch.setattr(quality, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "call", interrupted)
    arguments = ["--models", "slot_attention", "monet", "iodine", "--budget", "99h"]
    arguments += ["--allow-reference"]
    assert main(["bench", "--suite", "quality", *arguments, "--out", str(tmp_path)]) == 130
    assert "interrupted; what was measured is kept" in capsys.readouterr().err
    record = suites.read(tmp_path / "quality.json")
    assert [len(entry["points"]) for entry in record["cases"]] == [1 + MOMENTS, 3]
    assert record["left_out"] == ["IODINE: interrupted", "MONet: interrupted"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".svg"}


def test_a_process_that_dies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def died(self: FakeWorker, function: Callable[[], Any]) -> Any:
        raise EOFError

    monkeypatch.setattr(quality, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "call", died)
    record = quality.run(options(), lambda record: None)
    assert record["left_out"] == ["Slot Attention: its process died", "MONet: its process died"]


def test_stages_are_one_training(tmp_path: Path) -> None:
    """Cut into stages, a run trains on as if it had not been."""
    config = planned(laptop("slot_attention", "cpu"), 4)
    start = training.start(config, 0.1)
    assert start.step_seconds > 0
    assert start.measured["generated"]["mse"] > 0
    whole = stage(config, tmp_path / "whole", 10.0, {"generated": 2})
    first = stage(config, tmp_path / "parts", 1e-12, {"generated": 2})
    second = stage(config, tmp_path / "parts", 10.0, {"generated": 2, "real": 1})
    assert (whole["step"], first["step"], second["step"]) == (4, 1, 4)
    assert second["generated"] == whole["generated"] != first["generated"]
    assert second["minutes"] > first["minutes"] > 0
    assert trained(config, tmp_path / "parts") / 60 == second["minutes"]
