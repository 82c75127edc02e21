"""A short form of each part of `make torture`; of the operators' part tests/ops has its own."""

from __future__ import annotations

import io
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torture_containers
import torture_files
import torture_runs
from torture_children import Fault
from torture_mutations import CANARY, entries, hide_code, zipped


@pytest.mark.parametrize("event", [3, 15, 20])
def test_a_run_killed_while_it_saves(tmp_path: Path, event: int) -> None:
    """It leaves whole checkpoints, the 15th event being one amid a checkpoint's files, and goes on.

    Were checkpoints written in their place, resuming would pass over a torn one all the same.
    """
    killed = torture_runs.training(tmp_path, event=event, part="checkpoints").start()
    assert killed.end() == -9
    torture_runs.require_whole(tmp_path / "run")
    torture_runs.finish(tmp_path)


@pytest.mark.parametrize("part", ["signals", "full_disks", "pairs", "two_processes"])
def test_a_case(tmp_path: Path, part: str) -> None:
    counts = getattr(torture_runs, part)(random.Random(f"{part} short 0"), tmp_path)
    assert counts.total() >= 1


def test_other_bits_are_a_fault(tmp_path: Path) -> None:
    """The comparison itself: a row that a killed run lost, say."""
    torture_runs.finish(tmp_path)
    metrics = tmp_path / "run/metrics.jsonl"
    _, *rows = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(rows))
    with pytest.raises(Fault, match="other bits"):
        torture_runs.finish(tmp_path)


def test_mutated_files() -> None:
    cases = 10 * len(torture_files.FORMATS)
    found = [*torture_files.mutated_files(1, 0, cases)]
    assert [index for index, _, _ in found] == [*range(cases)]
    assert [wrong for _, _, wrong in found if wrong] == []


@pytest.mark.parametrize("part", ["containers", "own_images"])
def test_damaged_data(part: str) -> None:
    damaged = {
        "containers": torture_containers.damaged,
        "own_images": torture_containers.damaged_own_images,
    }
    cases = 50 * len(getattr(torture_containers, part)())
    found = [*damaged[part](1, 0, cases)]
    assert [index for index, _, _ in found] == [*range(cases)]
    assert [wrong for _, _, wrong in found if wrong] == []


def test_hidden_code_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary sings where code is run: here by pickle itself, or by numpy's."""
    monkeypatch.chdir(tmp_path)
    content = hide_code(random.Random(0), zipped({"a/data.pkl": b""}))
    pickle.loads(entries(content)["a/data.pkl"])
    Path(CANARY).rmdir()
    content = hide_code(random.Random(0), zipped({"image.npy": b""}))
    np.load(io.BytesIO(entries(content)["image.npy"]), allow_pickle=True)
    assert Path(CANARY).exists()


def test_a_record_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import run

    done: list[float] = []

    def case(rng: random.Random, place: Path) -> run.Counter[str]:
        done.append(rng.random())
        if len(done) == 3:
            raise Fault("a row is lost")
        return run.Counter(fine=1)

    monkeypatch.setitem(run.PARTS, "kills", (5, lambda *args: run.in_turn(case, *args)))
    out = tmp_path / "record.json"
    run.torture("kills", 2, 0, out)
    found = run.torture("kills", 5, 0, out)
    assert len({*done}) == 5
    assert found["counts"] == {"fine": 4, "wrong": 1}
    assert found["wrong"] == [{"case": 2, "fault": "a row is lost"}]
    assert json.loads(out.read_text())["parts"] == {"kills": found}
