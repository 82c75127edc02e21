"""`benchmarks/gpu.sh` without a GPU: what it lists, and what is left of parts that fail."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import carried

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks/gpu.sh"
PARTS_OF_CALLS = {
    "check": ["wheels", "build", "native-is-there", "tests-native", "memcheck", "racecheck"],
    "time": ["wheels", "extension", "steps", "ops", "ncu"],
    "train": ["wheels", "extension", "training", "evaluate"],
}


def run(*arguments: str, python: str = sys.executable, **environment: str):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, "PYTHON": python, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def fake_python(folder: Path, text: str) -> str:
    """A program in Python's place."""
    path = folder / "python"
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]


def test_it_is_bash():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_three_calls_of_at_most_eight_minutes_are_listed(tmp_path):
    done = run("--dry-run", python="/no/python", OUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    calls: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if call := re.fullmatch(r"(\w+): at most (\d+) s in all", line):
            calls[call[1]] = []
            assert int(call[2]) <= 8 * 60
        else:
            part = re.fullmatch(
                r"  (\S+) +at most +(\d+) s   (\d+ s here, on a CPU|not run here)", line
            )
            assert part, line
            assert 0 < int(part[2]) <= 8 * 60
            [*calls.values()][-1].append(part[1])
    assert [*calls] == [*PARTS_OF_CALLS]
    for call, some in PARTS_OF_CALLS.items():
        assert set(some) <= set(calls[call])


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_what_its_first_lines_say(option):
    done = run(option, python="/no/python")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("What to do with half an hour on a GPU machine")
    assert "OUT=folder benchmarks/gpu.sh [--help | --dry-run | --rehearse] STEP..." in done.stdout
    assert "pipefail" not in done.stdout


def test_an_unknown_step_is_refused():
    done = run("--dry-run", "chek")
    assert done.returncode == 2
    assert "expected one of" in done.stderr
    assert "got chek" in done.stderr


def test_a_part_that_is_killed_leaves_what_it_had(tmp_path):
    python = fake_python(
        tmp_path,
        'while [ $# -gt 0 ]; do [ "$1" = --json-lines ] && echo "{}" >>"$2"; shift; done\n'
        "echo begun\nsleep 60",
    )
    done = run("--rehearse", "ops", "ncu", python=python, OUT=str(tmp_path / "out"), LIMIT="1")
    assert done.returncode == 124
    out = tmp_path / "out"
    assert (out / "ops.jsonl").read_text() == "{}\n"
    assert [(row["part"], row["status"]) for row in rows(out)] == [("ops", 124), ("ncu", 124)]
    with tarfile.open(out / "logs.tar.gz") as logs:
        assert {"logs/ops.log", "logs/ncu.log"} <= {*logs.getnames()}
        assert logs.extractfile("logs/ops.log").readline() == b"begun\n"


def test_what_the_steps_had_when_they_were_killed_is_kept(tmp_path):
    python = fake_python(
        tmp_path,
        'while [ $# -gt 0 ]; do [ "$1" = --out ] && folder=$2; shift; done\n'
        'mkdir -p "$folder"; echo "{}" >"$folder/step.json"; sleep 60',
    )
    done = run("--rehearse", "steps", python=python, OUT=str(tmp_path / "out"), LIMIT="1")
    assert done.returncode == 124
    assert (tmp_path / "out/steps.json").read_text() == "{}\n"


TRAINER = """[ "$3" = train ] || exit 0
while [ $# -gt 0 ]; do [ "$1" = --out ] && run=$2; shift; done
echo $$ >>"$STARTED"
echo "{}" >>"$run/metrics.jsonl"
"""


def contents(out: Path) -> dict[str, bytes]:
    with tarfile.open(out / "run.tar") as run:
        return {m.name: run.extractfile(m).read() for m in run if m.isfile()}


def test_a_training_that_is_killed_saves_and_ends(tmp_path):
    python = fake_python(
        tmp_path,
        TRAINER + "trap 'sleep 1; echo saved >\"$run/last.ckpt\"; exit' TERM\n"
        "while :; do sleep 0.1; done",
    )
    out, started = tmp_path / "out", tmp_path / "started"
    done = run(
        *("--rehearse", "training"), python=python, OUT=str(out), LIMIT="2", STARTED=str(started)
    )
    assert done.returncode == 124
    assert contents(out) == {"./metrics.jsonl": b"{}\n", "./last.ckpt": b"saved\n"}
    assert (out / "metrics.jsonl").read_text() == "{}\n"
    [trainer] = started.read_text().split()  # none was started after it
    with pytest.raises(ProcessLookupError):
        os.kill(int(trainer), 0)


def test_a_training_that_went_on_without_a_graph_is_told(tmp_path):
    python = fake_python(tmp_path, TRAINER + '[ "$(wc -l <"$STARTED")" = 2 ]')
    out = tmp_path / "out"
    run("--rehearse", "training", python=python, OUT=str(out), STARTED=str(tmp_path / "started"))
    assert [(row["part"], row["status"]) for row in rows(out)] == [("training", 3)]
    assert contents(out) == {"./metrics.jsonl": b"{}\n{}\n"}


def test_a_part_without_time_is_told(tmp_path):
    out = tmp_path / "out"
    done = run("--rehearse", "ops", python="/no/python", OUT=str(out), LIMIT="0")
    assert done.returncode == 125
    assert [(row["part"], row["status"]) for row in rows(out)] == [("ops", 125)]


def test_make_runs_each_call_into_a_folder_of_its_own(tmp_path):
    python = fake_python(tmp_path, "exit 1")
    made = subprocess.run(
        ["make", "gpu", f"OUT={tmp_path}/out", f"PYTHON={python}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode != 0
    assert made.stderr.count("no GPU that torch can use") == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*PARTS_OF_CALLS}


def test_without_the_kernels_it_stops(tmp_path):
    python = fake_python(tmp_path, "exit 1")
    out = tmp_path / "out"
    done = run("--rehearse", "native-is-there", "tests-native", python=python, OUT=str(out))
    assert done.returncode == 1
    assert [row["part"] for row in rows(out)] == ["native-is-there"]
    assert "stopped" in done.stderr


def test_a_python_without_torch_is_named(tmp_path):
    python = fake_python(tmp_path, f'exec {sys.executable} -S -E "$@"')  # without site-packages
    done = run("check", python=python, PYTHONPATH="", OUT=str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gpu.sh: {python} has no torch; PYTHON=FILE takes another one\n"


def test_a_python_that_is_not_there_is_named(tmp_path):
    done = run("check", python="/no/python", OUT=str(tmp_path / "out"))
    assert done.returncode == 1
    assert "gpu.sh: PYTHON: expected a program, got /no/python" in done.stderr


def test_without_a_gpu_it_says_what_can_be_done(tmp_path):
    python = fake_python(tmp_path, "exit 1")
    done = run("ops", python=python, OUT=str(tmp_path / "out"))
    assert done.returncode == 1
    assert "no GPU that torch can use" in done.stderr


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ('touch "$OUT"/{1,2,3,4,5,6,7}', "9 files, expected at most 8"),
        ('truncate -s 16M "$OUT/large"', "large: 16 MiB or more"),
    ],
)
def test_what_would_not_come_back_is_named(tmp_path, made, message):
    python = fake_python(tmp_path, made)
    done = run("--rehearse", "ncu", python=python, OUT=str(tmp_path / "out"))
    assert message in done.stdout


def test_what_travels_is_measured(tmp_path, monkeypatch, capsys):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text(".gpu/\n")
    (tmp_path / "code").write_bytes(bytes(1000))
    (tmp_path / ".gpu/wheels").mkdir(parents=True)
    (tmp_path / ".gpu/wheels/one.whl").write_bytes(bytes(2000))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["carried", ".gpu"])
    monkeypatch.setattr(carried, "MOST", 1000 + 6 + 2000 + 1)
    carried.main()
    assert "the checkout" in capsys.readouterr().out
    monkeypatch.setattr(carried, "MOST", 1000 + 6 + 2000)
    with pytest.raises(SystemExit, match="too much to carry"):
        carried.main()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OUT": ""}, "expected OUT=folder for what comes back"),
        ({"OUT": "out", "LIMIT": "soon"}, "LIMIT: expected seconds, got soon"),
    ],
)
def test_what_it_cannot_work_with_stops_it(environment, message, tmp_path):
    python = fake_python(tmp_path, f"touch {tmp_path}/ran")
    done = run("wheels", python=python, **environment)
    assert done.returncode not in (0, 124)
    assert message in done.stderr
    assert not (tmp_path / "ran").exists()
