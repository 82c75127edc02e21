"""The run folder: its paths, and files that are there whole or not at all."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import emorl
from emorl.runs import RunFolder
from emorl.runs.contents import read_contents
from emorl.runs.files import clean, replacing, write_atomically
from emorl.runs.folder import by_step, holds, own_run, step_of

PACKAGE = Path(emorl.__file__).parent


def test_every_part_has_its_place():
    run = RunFolder("runs/mine")
    assert run.checkpoint(1000) == Path("runs/mine/checkpoints/step-00001000")
    assert run.pictures_of(123_456_789) == Path("runs/mine/pictures/step-123456789")
    assert run.evaluation("clevr6-val") == Path("runs/mine/evaluation/clevr6-val.json")


def test_steps_come_in_order(tmp_path):
    run = RunFolder(tmp_path)
    assert by_step(run.pictures) == []
    for step in (100_000_000, 20, 3):
        run.pictures_of(step).mkdir(parents=True)
    for other in ("step-7", "step-", "notes", ".unfinished-step-00000001.7.0a1b2c3d"):
        (run.pictures / other).mkdir()
    assert [step_of(folder) for folder in by_step(run.pictures)] == [3, 20, 100_000_000]


def test_no_other_module_writes_these_paths():
    """As `run_dir / "config.yaml"` would."""
    names = {path.name for path in vars(RunFolder("run")).values()} - {"run"}
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        if isinstance(node.right, ast.Constant) and node.right.value in names
    ]
    assert {place.partition(":")[0] for place in found} == {"runs/folder.py"}, found


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    place = tmp_path / "new" / "folder"
    with replacing(place) as unfinished:
        unfinished.mkdir()
        (unfinished / "part").write_text("x")
        assert not place.exists()
    assert [*place.parent.iterdir()] == [place]
    assert (place / "part").read_text() == "x"


def test_an_error_leaves_what_was_there(tmp_path):
    path = write_atomically(tmp_path / "file", b"old")

    def write_half() -> None:
        with replacing(path) as unfinished:
            unfinished.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_what_a_killed_process_leaves_is_hidden_and_cleaned(tmp_path):
    run = RunFolder(tmp_path)
    left = []
    for place in (run.config, run.checkpoint(3), run.pictures_of(3) / "masks.png"):
        writing = replacing(place)
        left.append(writing.__enter__())  # and never leaves
        left[-1].write_text("x")
    assert all(path.name.startswith(".") for path in left)
    clean(tmp_path)
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["config.yaml"], "run"),
        (["metrics.jsonl"], "run"),
        (["config.yaml", "metrics.jsonl"], "run"),
        (["config.json", "model.safetensors"], "model"),
        (["config.json", "model.safetensors", "config.yaml"], "model"),
        (["model.safetensors"], None),
    ],
)
def test_what_a_folder_holds(tmp_path, files, kind):
    for name in files:
        (tmp_path / name).touch()
    assert holds(tmp_path) == kind
    assert (own_run(tmp_path) is not None) == (kind == "run")


def test_what_names_and_no_folders_hold(tmp_path):
    assert holds("tetrominoes-laptop") == "model"
    assert holds(tmp_path / "nowhere") is None


def test_rows_and_evaluations_with_values_of_other_types_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": {}}\n{"step": 2, "loss": 0.5}\n')
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/x.json").write_text('{"metrics": {}, "notes": 3}')
    contents = read_contents(tmp_path)
    assert [row["step"] for row in contents.rows] == [2]
    assert not contents.evaluations
