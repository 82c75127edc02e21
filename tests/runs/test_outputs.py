"""What commands refuse to replace."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from emorl.bench.page import page
from emorl.bench.records import header
from emorl.bench.suite import Options
from emorl.cli import ablate, main
from emorl.cli.held_out import read_from
from emorl.cli.kept import require_replaceable
from emorl.data import open_dataset
from emorl.report.pictures import picture
from emorl.report.tiles import gif, label_png, png
from emorl.runs import RunFolder
from emorl.runs.lock import require_usable
from emorl.runs.outputs import BENCHMARK, EVALUATION, PAGE, PICTURE, TABLE, require_output

PIXELS = np.zeros((4, 4, 3), dtype=np.uint8)
RESULT = json.dumps({"protocol": "sample", "data": "tetrominoes"}).encode()
OPTIONS = Options((), (), 0, "cpu", 1, None, 0.0, 0)
OWN = "expected a file apart from those of"
OTHER = "expected a new file or"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, a model, pictures and other files of the user's, which we are in."""
    files = {
        "run/config.yaml": b"model: efficient_morl\n",
        "run/metrics.jsonl": b"",
        "run/evaluation/tetrominoes.json": RESULT,
        "run/evaluation/tetrominoes.csv": b"image\n",
        "run/checkpoints/step-00000002/model.safetensors": b"",
        "model/model.safetensors": b"",
        "model/config.json": b"{}",
        "notes.json": b'{"data": 1}',
        "list.json": b"[]",
        "text.txt": b"text",
        "earlier.json": RESULT,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for name in ("pictures/image-0000.png", "pictures/labels/a.png", "in/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(tmp_path / name)
    np.save(tmp_path / "data.npy", np.zeros((2, 4, 4, 3), dtype=np.uint8))
    (tmp_path / "link.json").symlink_to("run/report.html")
    (tmp_path / "pictures/plot.svg").write_text("<svg/>")
    (tmp_path / "bench").mkdir()
    for name in ("bench/ops-time.png", "bench/ops.html", "bench/ablations.csv"):
        (tmp_path / name).write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("emorl.cli.train.run", None)  # of ablations, if nothing stops them
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate run --json run/config.yaml", f"--json: {OWN}"),
        ("evaluate run --json run/metrics.jsonl", f"--json: {OWN}"),
        ("evaluate run --json run/report.html", f"--json: {OWN}"),
        ("evaluate run --json link.json", f"--json: {OWN}"),
        ("evaluate run --json run/evaluation/tetrominoes.json", f"--json: {OWN}"),
        ("evaluate run --json run/evaluation/tetrominoes.csv", f"--json: {OWN}"),
        ("evaluate run --json run/checkpoints/step-00000002/a.json", f"--json: {OWN}"),
        ("evaluate model --json model/model.safetensors", f"--json: {OWN}"),
        ("evaluate model --json model/SHA256SUMS", f"--json: {OWN}"),
        ("evaluate run --json text.txt", f"--json: {OTHER}"),
        ("evaluate run --json notes.json", f"--json: {OTHER}"),
        ("evaluate run --json list.json", f"--json: {OTHER}"),
        ("evaluate run --json pictures/labels/a.png", f"--json: {OTHER}"),
        ("evaluate run --data data.npy --json data.npy", "--json: expected a file apart from the"),
        ("evaluate run --data in --json in/new.json", "--json: expected a file apart from the"),
        (
            "evaluate run --sweep num-slots=2,3 --plot new --json ./new",
            "--plot: expected another file than --json's, got new",
        ),
        ("evaluate run --sweep num-slots=2,3 --plot pictures/image-0000.png", f"--plot: {OTHER}"),
        ("evaluate run --sweep num-slots=2,3 --plot earlier.json", f"--plot: {OTHER}"),
        ("segment model in --out pictures", f"--out: {OTHER}"),
        ("segment model in --out run/pictures", f"--out: {OWN}"),
        ("data check data.npy --sheet run/config.yaml", f"--sheet: {OWN}"),
        (
            "data check data.npy --sheet run/checkpoints/step-00000002/training.pt",
            f"--sheet: {OWN}",
        ),
        ("data check data.npy --sheet text.txt", f"--sheet: {OTHER}"),
        ("ablate --out bench", f"--out: {OTHER}"),
        ("bench --suite ops --budget 1s --allow-reference --out bench", f"--out: {OTHER}"),
        ("traverse efficient_morl/tetrominoes-laptop --out pictures --data tetrominoes", OTHER),
    ],
)
def test_nothing_else_is_replaced(place, capsys, line, message):
    before = content(place)
    assert main(line.split()) == 2
    text = capsys.readouterr().err
    assert message in text
    assert text.count("\n") == 1
    assert content(place) == before


def test_a_report_replaces_a_report(place, capsys):
    (place / "run/report.html").write_text("<p>mine</p>")
    assert main(["report", "run"]) == 2
    assert f"RUN: {OTHER} a page of emorl's, got another file" in capsys.readouterr().err
    (place / "run/report.html").unlink()
    assert main(["report", "run"]) == main(["report", "run"]) == 0


def test_a_conversion_replaces_no_model(place, fixtures_dir, capsys):
    golden = fixtures_dir / "golden/tetrominoes_geco_i3"
    line = ["convert", f"{golden}.pth", "--config", f"{golden}.json", "--out", "model"]
    before = content(place)
    assert main(line) == 2
    assert "--out: expected a new folder, got one with a config.json" in capsys.readouterr().err
    assert content(place) == before


@pytest.mark.parametrize(
    "made",
    [
        gif([PIXELS, PIXELS]),
        png(PIXELS),
        label_png(PIXELS[..., 0].astype(np.int64)),
        picture(Figure(), "png"),
        picture(Figure(), "svg"),
    ],
    ids=["gif", "png", "label map", "plot", "drawing"],
)
def test_own_pictures_are_replaced(tmp_path, made):
    (tmp_path / "a").write_bytes(made)
    require_output(tmp_path / "a", "--out", PICTURE)
    with pytest.raises(ValueError, match="expected a new file or the result of an evaluation"):
        require_output(tmp_path / "a", "--json", EVALUATION)


def test_a_result_replaces_a_result(place):
    require_output(place / "earlier.json", "--json", EVALUATION)
    require_output(place / "run/mine.json", "--json", EVALUATION)
    with pytest.raises(ValueError, match="apart from the data"):
        require_output(place / "earlier.json", "--json", EVALUATION, [place / "earlier.json"])


@pytest.mark.parametrize("name", ["x.html", "new/x.html", "../linked/x.html", "config.yaml"])
def test_nothing_is_written_among_trained_models(tmp_path, monkeypatch, capsys, name):
    models = tmp_path / "models"
    folder = models / "slot_attention/clevr6-laptop"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (models / "slot_attention/linked").symlink_to(folder)
    require_output(folder / "x.html", "--out", PAGE)
    monkeypatch.setattr("emorl.runs.trained.TRAINED", models)
    with pytest.raises(ValueError, match="--out: expected a place apart from the trained models"):
        require_output(folder / name, "--out", PAGE)
    require_output(tmp_path / "x.html", "--out", PAGE)
    for command in ("train --config smoke", "data generate tetrominoes --images 2"):
        assert main([*command.split(), "--out", str(folder / name)]) == 2
        assert "--out: expected a place apart from the trained models" in capsys.readouterr().err
    assert [*folder.iterdir()] == [folder / "config.yaml"]
    with pytest.raises(ValueError, match="--out: expected a place apart from the trained models"):
        require_usable(RunFolder(models), resume=False)


def test_others_folders_may_use_the_same_names(tmp_path):
    """A config.yaml alone makes no run."""
    (tmp_path / "config.yaml").touch()
    require_output(tmp_path / "evaluation/a.json", "--json", EVALUATION)


@pytest.mark.parametrize(
    ("before", "lost"),
    [
        ({"data": "other", "source": "/a/other.h5, 35x35"}, "the result of /a/other.h5, 35x35"),
        ({"data": "other"}, "the result of other"),
        ({"data": "other", "source": "/b/other.h5, 35x35"}, None),
        ({"data": "/b/other.h5"}, None),
    ],
    ids=["the run's own", "the run's own, earlier", "the same", "the same, earlier"],
)
def test_a_result_of_other_files_is_kept(tmp_path, before, lost):
    """The run's own images have a name, in place of a path, which another file's can be."""
    path, checkpoint = tmp_path / "other.json", tmp_path / "step-00000002"
    numbers = {"images": 2, "checkpoint": str(checkpoint), "metrics": {}}
    path.write_text(json.dumps({**before, **numbers}))
    options = argparse.Namespace(attention=True, lpips=True, disentanglement="yes")
    new = (path, checkpoint, "/b/other.h5", "/b/other.h5, 35x35", 2, options)
    if lost is None:
        require_replaceable(*new)
    else:
        with pytest.raises(ValueError, match=re.escape(f"holds {lost}; move it away")):
            require_replaceable(*new)


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (TABLE, lambda: ablate._markdown([{"ablation": "full", "options": "", "published": "-"}])),
        (
            TABLE,
            lambda: ablate._csv(
                [{"ablation": "full", "options": "", "runs": 1, "failed": 0}]
            ).decode(),
        ),
        (PAGE, lambda: page("emorl bench: ops", "", {}, [], [])),
        (BENCHMARK, lambda: json.dumps({**header("ops", OPTIONS), "failures": []})),
    ],
    ids=["table", "csv", "page", "record"],
)
def test_what_a_command_has_written_it_may_replace(tmp_path, kind, made):
    (tmp_path / "a").write_text(made())
    require_output(tmp_path / "a", "--out", kind)


def test_no_file_joins_the_pictures_that_a_run_reads(tmp_path):
    """Nor does a generator's name stand for a folder."""
    (tmp_path / "q").mkdir()
    Image.fromarray(PIXELS + 9).save(tmp_path / "q/a.png")
    pictures = open_dataset(tmp_path / "q", split="all")
    for data in (read_from(str(tmp_path / "q")), read_from(str(tmp_path / "q"), pictures)):
        with pytest.raises(ValueError, match="expected a file apart from the data"):
            require_output(tmp_path / "q/new.png", "--plot", PICTURE, data)
    assert read_from("clevr6") == read_from(None) == []
