"""`emorl bench --suite data`: sources, files, records, tables and the plot; once for real."""

from __future__ import annotations

import importlib
import json
import pkgutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import emorl.data
from emorl.bench import suites
from emorl.bench.data import run as data_run
from emorl.bench.data.figures import figures
from emorl.bench.data.files import write_tfrecord
from emorl.bench.data.reading import Way, timing
from emorl.bench.data.run import MOST, WAYS, eaters_of
from emorl.bench.data.scenes import Discs
from emorl.bench.data.sources import SOURCES
from emorl.bench.data.steps import Eater, build_step
from emorl.bench.data.tables import bottlenecks, by_case, hungriest, per_second, steps
from emorl.bench.records import machine, quantiles, write
from emorl.bench.suite import Options
from emorl.bench.workers import Timing
from emorl.cli import main
from emorl.data import GENERATORS, ObjectDataset, Tetrominoes, open_dataset
from emorl.data.filtered import FilteredDataset
from emorl.data.readers.tfrecord import TFRecordDataset
from emorl.data.readers.tfrecord_layouts import LAYOUTS
from emorl.data.transforms import TransformedDataset
from emorl.report.pictures import picture


def timed(rate: float, **others: Any) -> dict[str, Any]:
    spread = {"median": rate, "p20": 0.9 * rate, "p80": 1.2 * rate}
    return {**others, "images": [100] * 3, "seconds": [100 / rate] * 3, "images_per_second": spread}


def invented() -> dict[str, Any]:
    """A record whose numbers are made up: the n-th source gives an n-th of the first one's."""
    cases = []
    for n, (key, source) in enumerate(SOURCES.items(), start=1):
        parts = {}
        for way in WAYS:
            rate = 8000 / n**2 * (1 + 0.8 * way.workers) * (0.5 if way.masks else 1.0)
            parts[str(way)] = timed(rate, **way._asdict())
        side = [96, 96] if source.size else [35, 35]
        cases.append({"source": key, "image_size": side, "parts": parts})
    rates = {"tetrominoes-laptop": 1000, "tetrominoes": 100, "multi_dsprites": 400, "clevr6": 220}
    eaters = [
        timed(
            rates[eater.config] * (2 if eater.model == "slot_attention" else 1), **eater._asdict()
        )
        for eater in eaters_of([*SOURCES])
    ]
    return {
        "suite": "data",
        "date": "2026-11-27 12:00 UTC",
        "machine": {**machine(2), "processor": "Some Processor at 2.5 GHz"},
        "device": "cpu",
        "batch": 32,
        "interrupted": False,
        "failures": [],
        "left_out": [],
        "steps": [{**eater, "batch": 4} for eater in eaters],
        "cases": cases,
    }


def opened(key: str, folder: Path) -> ObjectDataset:
    """A source's data set; its file has two images."""
    source = SOURCES[key]
    if source.write is None:
        return source.open(key, "cpu")
    source.write(folder / key, 2)
    return source.open(folder / key, "cpu")


def test_everything_that_can_be_opened_is_a_source(tmp_path: Path) -> None:
    found = set()
    layouts = set()
    for key in SOURCES:
        dataset = opened(key, tmp_path)
        batch = dataset.__getitems__([0, 1])
        assert batch.image.shape[-2:] == dataset.image_size
        assert batch.mask is not None
        assert batch.mask.max() > 1
        reader = dataset.source if isinstance(dataset, TransformedDataset) else dataset
        found.add(type(reader))
        layouts |= {reader.name} if isinstance(reader, TFRecordDataset) else set()

    for module in pkgutil.walk_packages(emorl.data.__path__, "emorl.data."):
        importlib.import_module(module.name)
    assert found == set(concrete(ObjectDataset)) - {FilteredDataset, TransformedDataset}
    trained_on = {"tetrominoes", "multi-dsprites", "clevr"}
    assert layouts == trained_on < {layout.name for layout in LAYOUTS}
    assert {key for key, source in SOURCES.items() if source.write is None} == set(GENERATORS)


def concrete(base: type) -> list[type]:
    """The classes of emorl.data that are made from `base` and can be made."""
    can_be_made = not any(
        getattr(getattr(base, name), "__isabstractmethod__", False) for name in dir(base)
    )
    own = [base] if can_be_made and base.__module__.startswith("emorl.data.") else []
    return own + [kind for child in base.__subclasses__() for kind in concrete(child)]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    scenes = TransformedDataset(Tetrominoes(), limit=3)
    write_tfrecord(scenes, tmp_path / "written", repeats=2)
    read = open_dataset(tmp_path / "written")
    assert len(read) == 6
    expected, got = scenes.__getitems__(range(3)), read.__getitems__(range(3, 6))
    assert torch.equal(got.image, expected.image)
    assert got.mask is not None
    assert expected.mask is not None
    assert torch.equal(got.mask, expected.mask)
    for name, values in expected.factors.items():
        assert torch.equal(got.factors[name], values)


def test_masks_stored_entities_last_are_read_too(tmp_path: Path) -> None:
    source = SOURCES["multi-dsprites-tfrecord"]
    assert source.write is not None
    source.write(tmp_path / "written", 3)
    scenes = Discs("", (64, 64), 6, {"visibility": 1}, 3).__getitems__(range(3))
    read = open_dataset(tmp_path / "written").__getitems__(range(3))
    assert torch.equal(read.image, scenes.image)
    assert read.mask is not None
    assert scenes.mask is not None
    assert torch.equal(read.mask, scenes.mask)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("masks", [False, True])
def test_readings_count_the_batches_of_all_workers(masks: bool, workers: int) -> None:
    images, seconds = timing(Tetrominoes(), Way(masks, workers), 3, "cpu", 0.01)
    assert images > 0
    assert images % (3 * max(1, workers)) == 0
    assert seconds >= 0.01


def test_files_that_memory_does_not_hold_are_read_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emorl.data.readers.tfrecord.MEMORY_LIMIT", 1)
    write_tfrecord(TransformedDataset(Tetrominoes(), limit=5), tmp_path / "written")
    dataset = open_dataset(tmp_path / "written")
    assert isinstance(dataset, TFRecordDataset)
    assert not dataset.in_memory
    images, _ = timing(dataset, Way(False, 0), 2, "cpu", 0.05)
    assert images > 5


def test_steps_are_those_of_training() -> None:
    eater = Eater("smoke", "slot_attention")
    step = build_step(eater, "cpu")["step"]()
    assert isinstance(step, Timing)
    assert step.seconds > 0
    assert Eater("clevr6", "efficient_morl").batch("cpu") == 4
    assert Eater("clevr6", "efficient_morl").batch("cuda") == 32
    assert Eater("tetrominoes-laptop", "efficient_morl").batch("cpu") == 8


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "data.json", invented())
    assert suites.read(tmp_path / "data.json") == json.loads(json.dumps(invented()))


def test_tables_say_who_waits_for_whom() -> None:
    record = invented()
    assert len(per_second(record)) == 1 + 2 * len(SOURCES)
    assert len(steps(record)) == 1 + 8
    rows = {(row[0], row[1]): row[2:] for row in bottlenecks(record)}
    generated = SOURCES["tetrominoes"].title
    assert rows[generated, "tetrominoes, slot_attention"] == [
        "200",
        "no: without workers it adds 2.5% to a step",
    ]
    assert rows[generated, "tetrominoes-laptop, slot_attention"][1] == "not with 1 worker"
    # 8000 / 14^2 = 41 images a second without workers, 106 with two; 440 are eaten.
    chunked = SOURCES["clevr-hdf5"].title
    assert rows[chunked, "clevr6, slot_attention"] == [
        "440",
        "yes: 0.24x of what is eaten, with 2 workers",
    ]
    seconds = by_case(record)[generated]["1000 images, 0 workers"]["median"]
    assert seconds == pytest.approx(1 / 8)


def test_the_plot_is_drawn() -> None:
    record = invented()
    (figure,) = figures(record).values()
    images, masks = figure.axes
    bars = len(WAYS) // 2 * len(SOURCES)
    assert [len(axes.patches) for axes in (images, masks)] == [bars, bars]
    # A line for each source and configuration: Tetrominoes' four have two.
    assert sum(len(hungriest(record, key)) for key in SOURCES) == 4 * 2 + 14
    svg = picture(figure, "svg")
    assert b"Some Processor at 2.5 GHz, 2 threads; 2026-11-27" in svg
    assert b"CLEVR, HDF5, contiguous" in svg
    assert b"official configuration" in svg
    assert picture(figure, "png").startswith(b"\x89PNG")
    assert figures({**record, "cases": []}) == {}
    assert figures({**record, "steps": []}).keys() == {"images-per-second"}


def test_what_would_run_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--suite", "data", "--dry-run", "--device", "cuda"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {key} " in printed for key in SOURCES)
    assert "step of clevr6, slot_attention" in printed


@pytest.mark.parametrize("option", ["--sizes 64", "--memory 1GiB", "--official no"], ids=str.split)
def test_options_without_a_meaning_are_refused(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--suite", "data", *option.split()]) == 2
    assert f"{option.split()[0]}: suite data has " in capsys.readouterr().err


class FakeWorker:
    """Stands in for a process, whose steps take a second each."""

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self) -> tuple[float, float]:
        return 1.0, 0.0


def options(**changes: Any) -> Options:
    chosen: dict[str, Any] = {
        **{"models": ("tetrominoes", "tetrominoes-real10"), "sizes": (), "batch": 4},
        **{"device": "cpu", "threads": 1, "official": None, "budget": 3600.0, "memory": 2**30},
    }
    return Options(**{**chosen, **changes})


def fake_timing(dataset: ObjectDataset, way: Way, batch: int, *_: object) -> tuple[int, float]:
    """Batches of a second, by each worker."""
    return 10 * batch * max(1, way.workers), 10.0


def test_a_run_measures_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_run, "timing", fake_timing)
    monkeypatch.setattr(data_run, "worker_of", lambda *_: FakeWorker())
    records: list[dict[str, Any]] = []
    record = data_run.run(options(), records.append)
    assert records[-1] == record
    assert [entry["source"] for entry in record["cases"]] == ["tetrominoes", "tetrominoes-real10"]
    parts = record["cases"][0]["parts"]
    assert len(parts) == 6
    assert parts["images and masks, 2 workers"]["images_per_second"] == quantiles([8.0])
    assert len(parts["images, 0 workers"]["seconds"]) == MOST
    assert [step["images_per_second"]["median"] for step in record["steps"]] == [8, 8, 4, 4]
    assert not record["failures"]
    assert not record["left_out"]


def test_a_budget_that_is_too_small_leaves_out_what_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow(*arguments: Any) -> tuple[int, float]:
        time.sleep(0.5)
        return fake_timing(*arguments)

    monkeypatch.setattr(data_run, "timing", slow)
    record = data_run.run(options(budget=2.5), lambda record: None)  # six ways take three seconds
    (entry,) = record["cases"]
    assert {len(part["seconds"]) for part in entry["parts"].values()} == {1}
    assert record["left_out"][0] == "Tetrominoes, ten published: no time"
    assert record["left_out"][-1] == "step of tetrominoes, slot_attention: no time"


def test_an_interrupted_run_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[Way] = []

    def interrupted(dataset: ObjectDataset, way: Way, *others: Any) -> tuple[int, float]:
        read.append(way)
        if len(read) == 6 * MOST + 2:
            raise KeyboardInterrupt
        return fake_timing(dataset, way, *others)

    monkeypatch.setattr(data_run, "timing", interrupted)
    arguments = ["--models", "tetrominoes", "tetrominoes-real10", "--budget", "99h"]
    arguments += ["--out", str(tmp_path), "--allow-reference"]
    assert main(["bench", "--suite", "data", *arguments]) == 130
    assert "interrupted; what was measured is kept" in capsys.readouterr().err
    record = suites.read(tmp_path / "data.json")
    assert [len(entry["parts"]) for entry in record["cases"]] == [6, 1]
    assert record["left_out"][0] == "Tetrominoes, ten published: interrupted"
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".svg"}


def test_a_source_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> tuple[int, float]:
        raise ValueError("file: image 3: damaged")

    monkeypatch.setattr(data_run, "timing", fails)
    monkeypatch.setattr(data_run, "worker_of", lambda *_: FakeWorker())
    record = data_run.run(options(models=("tetrominoes",)), lambda record: None)
    assert record["failures"] == ["Tetrominoes, generated: file: image 3: damaged"]
    assert record["cases"] == []
    assert len(record["steps"]) == 4


def test_a_real_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A generator against one model's steps, from the command line to the plot."""
    monkeypatch.setattr(data_run, "eaters_of", lambda _: [Eater("smoke", "slot_attention")])
    arguments = ["--models", "tetrominoes-real10", "--batch", "2", "--budget", "8s"]
    arguments += ["--device", "cpu", "--html", "--allow-reference", "--out", str(tmp_path)]
    assert main(["bench", "--suite", "data", *arguments]) == 0
    record = suites.read(tmp_path / "data.json")
    (entry,) = record["cases"]
    assert entry["image_size"] == [35, 35]
    assert {len(part["seconds"]) for part in entry["parts"].values()} <= {*range(1, MOST + 1)}
    (step,) = record["steps"]
    assert step["images_per_second"]["median"] > 0
    assert "Tetrominoes, ten published" in capsys.readouterr().out
    assert (tmp_path / "data.html").read_text().count("data:image/png") == 1
