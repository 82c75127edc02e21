"""Reports of trained models, and comparisons in which one side has less than the other."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
import yaml

from emorl.cli import main
from emorl.cli.report import view_of
from emorl.report import write_report
from emorl.report.tables import differences
from emorl.runs.folder import MODEL_FILES
from emorl.runs.trained import located

NAME = "slot_attention/tetrominoes-laptop"
OF_A_RUN = ("training run", "not complete", "none logged", "There is no", "There are no")
SECTIONS = ("Viewer", "Evaluation", "Training", "Pictures")


def sections(page: str) -> list[str]:
    """The headings of the sections that a run may lack."""
    return [title for title in re.findall("<h2>(.*?)</h2>", page) if title in SECTIONS]


def told(page: str) -> list[str]:
    """The paragraphs and the rows of tables, without markup."""
    texts = re.findall("<(?:p|li|tr|h1)[ >].*?</(?:p|li|tr|h1)>", page, re.DOTALL)
    return [" ".join(unescape(re.sub("<.*?>", " ", text)).split()) for text in texts]


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of the model `NAME` with another seed, less of a log, and an evaluation."""
    folder = tmp_path / "my run"
    (folder / "evaluation").mkdir(parents=True)
    config = yaml.safe_load((located(NAME) / "config.yaml").read_text())
    config["trainer"] |= {"seed": 7, "curriculum": {"kl_weight": [[0, 1]]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 1.5}\n')
    settings = {"data": "tetrominoes", "split": "val", "images": 8, "seed": 0}
    metrics = {"fg_ari": {"mean": 0.5, "std": 0.25, "count": 8}}
    (folder / "evaluation" / "tetrominoes-val.json").write_text(
        json.dumps({"checkpoint": "x", **settings, "metrics": metrics})
    )
    return folder


def test_a_trained_model_shows_what_it_has(tmp_path):
    page = write_report(NAME, place=tmp_path / "page.html", view_of=view_of).read_text()
    texts = told(page)
    assert NAME in texts
    assert any(text.startswith("A trained model of emorl") for text in texts)
    for fact in ("Model slot_attention", "Images tetrominoes", "Steps 6000"):
        assert fact in texts
    assert sections(page) == ["Viewer"]
    assert not [text for text in OF_A_RUN if text in page]


def test_a_lone_model_folder_shows_what_it_has(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(located(NAME) / name, folder)
    with pytest.raises(ValueError, match=r"place: needed, since .*mine is no run"):
        write_report(folder)
    page = write_report(folder, place=tmp_path / "page.html", view_of=view_of).read_text()
    assert {"mine", "Model slot_attention", "Image size 35 x 35", "Slots 3"} <= {*told(page)}
    assert "There is no viewer: the model&#39;s images are not known." in page
    assert sections(page) == []
    assert "not complete" not in page


def test_a_checkpoint_is_a_model_of_its_run(run, tmp_path):
    checkpoint = run / "checkpoints" / "step-00000002"
    shutil.copytree(located(NAME), checkpoint)
    (checkpoint / "config.yaml").unlink()
    page = write_report(checkpoint, place=tmp_path / "page.html", view_of=view_of).read_text()
    assert {"my run/checkpoints/step-00000002", "Steps 2 of 6000"} <= {*told(page)}
    assert sections(page) == ["Viewer"]
    assert not [text for text in OF_A_RUN if text in page]


def test_a_side_that_lacks_something_says_so_in_a_line(run, tmp_path):
    page = write_report(run, NAME, place=tmp_path / "page.html", view_of=view_of).read_text()
    texts = told(page)
    assert sections(page) == ["Viewer", "Evaluation", "Training"]
    assert "metric my run what it tells" in texts
    assert f"{NAME}: A trained model keeps no evaluations." in texts
    assert f"{NAME}: There is no log of its training." in texts
    assert any(text.startswith("my run: There is no viewer: ") for text in texts)


def evaluated(run: Path, name: str, **different: object) -> None:
    """Replace a run's evaluation by one that is usual but for this."""
    shutil.rmtree(run / "evaluation")
    usual = {"data": "tetrominoes", "images": 320, "metrics": {"fg_ari": {"mean": 0.5}}}
    (run / "evaluation").mkdir()
    (run / "evaluation" / f"{name}.json").write_text(json.dumps(usual | different))


@pytest.fixture
def other(run) -> Path:
    """A copy of the run without its evaluation."""
    copy = shutil.copytree(run, run.parent / "other")
    shutil.rmtree(copy / "evaluation")
    return copy


def test_the_command_that_evaluates_a_run_is_told(run, other):
    evaluated(run, "tetrominoes")
    texts = told(write_report(other, run).read_text())
    command = f"emorl evaluate {other}"
    assert f"other: Not measured so: {command} does, emorl report adds it." in texts
    texts = told(write_report(NAME, run, place=run / "page.html").read_text())
    command = f"emorl evaluate {NAME} prints one"
    assert f"{NAME}: A trained model keeps no evaluations: {command}." in texts


@pytest.mark.parametrize(
    ("name", "different"),
    [
        ("tetrominoes-size64", {}),
        ("tetrominoes", {"images": 8}),
        ("tetrominoes", {"metrics": {"attention_fg_ari": {"mean": 0.5}}}),
        ("tetrominoes", {"metrics": {"lpips": {"mean": 0.5}}}),
        ("sprites", {"data": "sprites"}),
        ("mine", {"data": "/data/mine.h5"}),
    ],
)
def test_no_command_is_told_that_measures_otherwise(run, other, name, different):
    evaluated(run, name, **different)
    page = write_report(other, run).read_text()
    assert "other: Not measured so." in told(page)
    assert "emorl evaluate" not in page


def test_no_command_is_told_that_measures_on_other_images(run, other):
    evaluated(run, "tetrominoes")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["seed"] = 1
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    assert "other: Not measured so." in told(write_report(other, run).read_text())


def test_a_run_without_its_configuration_is_a_run(run, other):
    (other / "config.yaml").unlink()
    texts = told(write_report(other, run).read_text())
    assert "other: Not measured so." in texts
    assert any(text.startswith("Two training runs of emorl") for text in texts)


def test_a_copy_of_a_trained_model_is_none_of_a_run(tmp_path):
    copy = shutil.copytree(located(NAME), tmp_path / "copy")
    before = sorted(copy.iterdir())
    with pytest.raises(ValueError, match=r"place: needed, since .*copy is no run"):
        write_report(copy)
    assert main(["report", str(copy)]) == 2
    assert main(["evaluate", str(copy), "--images", "1", "--disentanglement", "no"]) == 0
    assert sorted(copy.iterdir()) == before
    texts = told(write_report(copy, place=tmp_path / "page.html", view_of=view_of).read_text())
    assert any(text.startswith("A trained model of emorl") for text in texts)


@pytest.mark.parametrize("typed", ["best", "checkpoints/step-00000002", "."])
def test_a_checkpoint_is_known_however_it_is_named(run, tmp_path, monkeypatch, typed):
    checkpoint = run / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    for name in MODEL_FILES:
        shutil.copy(located(NAME) / name, checkpoint)
    (run / "best").symlink_to("checkpoints/step-00000002")
    monkeypatch.chdir(checkpoint if typed == "." else run)
    page = write_report(typed, place=tmp_path / "page.html", view_of=view_of).read_text()
    assert {"my run/checkpoints/step-00000002", "Steps 2 of 6000"} <= {*told(page)}
    assert ", by step-00000002</span>" in page


def test_commands_name_the_folder_from_anywhere(run, monkeypatch):
    shutil.rmtree(run / "evaluation")
    monkeypatch.chdir(run)
    assert f"emorl evaluate '{run}' makes one" in "".join(told(write_report(".").read_text()))


def test_only_what_differs_in_configurations_is_listed(run, other):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"] |= {"seed": 8, "curriculum": {}, "geco": None, "steps": 1}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    page = write_report(run, other).read_text()
    table = page.partition("What differs in the configurations")[2].partition("</table>")[0]
    assert told(table) == [
        "my run other",
        "trainer.curriculum.kl_weight [[0, 1]] -",
        "trainer.seed 7 8",
        "trainer.steps 6000 1",
    ]
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "What differs" not in write_report(run, other).read_text()


def test_what_differs_is_written_in_full():
    first, second = [*range(100), 1], [*range(100), 2]
    configs = [{"steps": first, "name": "1", "same": None}, {"steps": second, "name": 1}]
    assert differences([{"trainer": config} for config in configs]) == [
        ("trainer.steps", [str(first), str(second)]),
        ("trainer.name", ['"1"', "1"]),
        ("trainer.same", ["null", "-"]),
    ]


def test_a_report_replaces_no_other_file(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: efficient_morl")
    with pytest.raises(ValueError, match="place: expected a new file or a page of emorl's, got"):
        write_report("tetrominoes-laptop", place=mine)
    assert mine.read_text() == "model: efficient_morl"
