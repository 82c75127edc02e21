"""`make bench-check`: its rule, on invented times."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import check
from benchmarks.check import CPU_TIME, EVENT, INSTRUCTIONS, TIME, Amounts, Ratios

NOISE = np.random.default_rng(0).lognormal(0.0, 0.1, 25)


class FakeSide:
    """A process whose steps take so many seconds each; of a case without seconds it knows none."""

    def __init__(
        self, seconds: float, instructions: float = 1e6, log: tuple[str, list[str]] | None = None
    ) -> None:
        self.seconds, self.count, self.log = seconds, instructions, log

    def times(self, case: str, steps: int) -> Amounts:
        if case == "new":
            raise LookupError("error: KeyError: 'new'")
        if self.log is not None:
            name, turns = self.log
            turns.append(name)
        return {TIME: steps * self.seconds, CPU_TIME: steps * self.seconds}

    def instructions(self, case: str, steps: int) -> Amounts:
        return {INSTRUCTIONS: steps * self.count}


@pytest.mark.parametrize(
    ("ratios", "slower"),
    [
        (NOISE, False),
        (1.2 * NOISE, True),
        (1.2 * NOISE**5, False),  # half of them are below 1.2, but nothing is certain
        ([1.04] * 25, False),  # tolerated
        ([1.06] * 7, True),
        ([1.0] * 16 + [3.0] * 9, False),  # another program, now and then
        (NOISE / 1.2, False),
    ],
    ids=["same", "slower", "noise", "tolerated", "few", "outliers", "faster"],
)
def test_rule(ratios: Any, slower: bool) -> None:
    assert Ratios.of(ratios).slower == slower


def test_trees_take_turns_in_being_first() -> None:
    log: list[str] = []
    sides = FakeSide(0.1, log=("reference", log)), FakeSide(0.2, log=("tree", log))
    found = check.measure("x", *sides, until=0.0, counts=False)
    turns = ["reference", "tree", "tree", "reference"] * check.LEAST
    assert log == ["reference", "tree", *turns[: 2 * check.LEAST]]
    assert found.ratios == {TIME: Ratios(2.0, 2.0, 2.0), CPU_TIME: Ratios(2.0, 2.0, 2.0)}
    assert found.seconds == 0.1


def compared(*trees: FakeSide) -> tuple[dict[str, check.Measured], list[str], int]:
    """With a tree's process each time that there are new ones; and how often there were."""
    waiting = iter(trees)

    @contextmanager
    def process(side: FakeSide) -> Iterator[FakeSide]:
        yield side

    def sides() -> tuple[Any, Any]:
        return process(FakeSide(0.1)), process(next(waiting))

    counts = any(tree.count != 1e6 for tree in trees)
    measured, left_out = check.compare(["x", "new"], sides, 0.0, counts)
    return measured, left_out, len(trees) - len([*waiting])


def test_what_looks_slower_is_measured_again() -> None:
    measured, left_out, times = compared(FakeSide(0.12), FakeSide(0.12))
    assert (measured["x"].slower, times) == (True, 2)
    assert left_out == ["new: error: KeyError: 'new'"]
    assert check.table(measured)[1][-1] == "SLOWER"
    measured, _, times = compared(FakeSide(0.12), FakeSide(0.1))
    assert (measured["x"].slower, times) == (False, 2)
    measured, _, times = compared(FakeSide(0.1), FakeSide(0.12))
    assert (measured["x"].slower, times) == (False, 1)


def test_more_instructions_are_slower() -> None:
    measured, _, _ = compared(*[FakeSide(0.1, instructions=1.1e6)] * 2)
    assert measured["x"].slower
    assert check.table(measured)[1][4] == "1.100 (1.100 to 1.100)"


def test_output_of_perf() -> None:
    assert check.counted(f"Events enabled\n123456,,{EVENT},5000,100.00,,\n") == 123456
    for said in (f"<not supported>,,{EVENT},0,100.00,,\n", "Error: no permission\n", ""):
        with pytest.raises(ValueError, match=r"expected a number of instructions"):
            check.counted(said)


def test_an_unknown_reference_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"REF: expected a git reference, got 'no-such'"),
        check.worktree("no-such"),
    ):
        pass


def test_a_process_answers_for_its_tree(tmp_path: Path) -> None:
    """A tree whose emorl cannot be imported: no times, and no waiting for them."""
    (tmp_path / "emorl").mkdir()
    (tmp_path / "emorl/__init__.py").write_text("raise SystemExit")
    with check.Process(tmp_path) as process, pytest.raises(LookupError, match=r"process died"):
        process.times("slot_mlp", 1)


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=x", "-c", "user.email=x@x"]
    done = subprocess.run(
        ["git", *names, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_reference_is_a_worktree_with_its_own_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "ROOT", tmp_path)
    for folder in ("csrc", "emorl"):
        (tmp_path / folder).mkdir()
    (tmp_path / "csrc/kernel.cpp").write_text("old")
    (tmp_path / "setup.py").write_text("open('emorl/_C.so', 'w').write('built there')")
    (tmp_path / "emorl/__init__.py").write_text("old")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "old")
    for file in ("_C.so", "_build.json"):
        (tmp_path / "emorl" / file).write_text("ours")
    (tmp_path / "emorl/__init__.py").write_text("new")

    with check.worktree("HEAD") as tree:
        assert (tree / "emorl/__init__.py").read_text() == "old"
        assert (tree / "emorl/_C.so").read_text() == "ours"
    (tmp_path / "csrc/other.cpp").write_text("new")
    with check.worktree("HEAD") as tree:
        assert (tree / "emorl/_C.so").read_text() == "built there"
    assert not tree.exists()
    assert git(tmp_path, "worktree", "list").count("\n") == 1
