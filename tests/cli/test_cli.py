from __future__ import annotations

import csv
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_viewers import small_viewers  # noqa: F401

from emorl.cli import main
from emorl.models import MODELS
from emorl.report import backend
from emorl.report.meanings import meaning
from emorl.runs.trained import TRAINED
from emorl.training.config import DataConfig
from emorl.training.config_help import describe_keys

SHORT = ["--trainer.steps", "2", "--trainer.eval_every", "2", "--trainer.eval_images", "4"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    assert main(["train", "--config", "smoke", "--out", str(folder), *SHORT]) == 0
    return folder


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr has, which must be one line."""
    text = capsys.readouterr().err
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text


def test_help_lists_the_commands_and_loads_no_torch():
    script = "import sys, emorl.cli; emorl.cli.main(['--help']); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in ("train", "evaluate", "report", "data", "convert", "info"):
        assert f"  {command}" in result.stdout


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("usage: emorl COMMAND")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("emorl ")


def test_train_help_has_every_option_with_its_default(capsys):
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for piece in (
        "--trainer.learning_rate",
        "default: 0.0004",
        "images per optimiser step, over all processes",
        "--network.sigma",
        "--data.train",
        "--resume auto: go on",
        "one of clevr6, clevr6-128",
    ):
        assert piece in text


@pytest.mark.parametrize(
    ("line", "steps"),
    [("--config smoke", 20), ("--data.train no", 20_000), ("", 300_000)],
)
def test_train_help_has_the_configurations_values(line, steps, capsys):
    assert main(["train", *line.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"steps of the whole run (a whole number; default: {steps})" in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian", "emorl: unknown command trian; did you mean train?"),
        ("train", "emorl train: --config: a file or one of clevr6, "),
        ("train --config smok", "is called smok; did you mean smoke?"),
        ("train --config no.yaml", "no such file: no.yaml"),
        ("train --config smoke --trainer.stepz 3", "did you mean trainer.steps?"),
        ("train --config smoke --trainer.steps x", "trainer.steps: expected a whole number, got x"),
        ("train --config smoke --data.train no.h5", "no.h5: neither a file nor a generator"),
        ("train --config smoke --resume yes", "--resume: expected auto, got yes"),
        ("train --config smoke --network.sigma -1", "sigma"),
        ("train --config smoke --model slotty", "no configurations for slotty"),
        ("train --out no --resume auto", "no holds no run to resume"),
        (
            "train --config multi_dsprites",
            "multi_dsprites.yaml's multi_dsprites_colored_on_grayscale.h5 is not there",
        ),
        ("evaluate", "the following arguments are required: RUN|CHECKPOINT"),
        ("evaluate no", "emorl evaluate: no: no such folder"),
        ("evaluate . --images x", "expected a whole number >= 1, got x"),
        ("evaluate . --imgaes 3", "unknown argument --imgaes; did you mean --images?"),
        ("evaluate .", "expected a run folder"),
        ("report no", "no: expected a run with config.yaml"),
        ("convert no.pth --config no.json --out x", "no such file: no.json"),
        ("data chekc", "unknown argument chekc; did you mean check?"),
        ("data check no", "no: neither a file nor a generator"),
        (
            "train --model monet --data.train no",
            "--config: a file or one of clevr6, multi_dsprites, smoke, ",
        ),
        ("data generate tetromino --out a.h5 --images 3", "did you mean tetrominoes?"),
        ("data generate tetrominoes --out a.h5", "required: --images"),
        ("info --all", "unknown argument --all"),
    ],
)
def test_mistakes_are_answered_by_one_line(tmp_path, monkeypatch, capsys, line, message):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert message in complaint(capsys)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("out", [".", "new/run"])
def test_a_refused_run_is_not_in_the_way_of_the_next(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    line = ["train", "--model", "monet", "--config", "smoke", *SHORT, "--out", out]
    assert main([*line, "--network.image_size", "[64, 64]"]) == 2
    assert (
        "network.image_size: expected [35, 35], the images' size, got [64, 64]"
        in capsys.readouterr().err
    )
    assert not [*tmp_path.iterdir()]
    assert main(line) == 0


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)
    for name in ("training.config_file", "training.config_keys", "runs.yaml_file"):
        monkeypatch.delitem(sys.modules, f"emorl.{name}", raising=False)
    assert main(["train", "--config", "smoke"]) == 2
    expected = "yaml is not installed: pip install 'emorl[train]'"
    assert expected in complaint(capsys)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "emorl info: interrupted"),
        (ArithmeticError("step 3: nll_1 is nan"), 1, "emorl info: step 3: nll_1 is nan"),
        (ValueError("two\n  lines"), 2, "emorl info: two lines"),
        (PermissionError(13, "Permission denied", "x.h5"), 2, "x.h5: Permission denied"),
    ],
    ids=["ctrl-c", "diverged", "value", "file"],
)
def test_errors_have_exit_codes(monkeypatch, capsys, error, code, message):
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module("emorl.cli.info"), "run", fail)
    assert main(["info"]) == code
    assert message in complaint(capsys)


@pytest.mark.parametrize(
    "take",
    [
        lambda: torch.empty(2**45),
        lambda: torch.empty(2**40, 2**40),
        lambda: bytearray(2**60),
        lambda: [0] * 2**60,
    ],
)
def test_memory_that_there_is_not_is_one_line(monkeypatch, capsys, take):
    for command, advice in (
        ("train", ": take a smaller batch, or raise --trainer.accumulation"),
        ("evaluate", ": take a smaller --batch-size"),
        ("bench", ": take smaller --sizes or a smaller --batch"),
        ("info", ""),
    ):
        module = importlib.import_module(f"emorl.cli.{command}")
        monkeypatch.setattr(module, "run", lambda arguments: take())
        assert main([command]) == 1
        assert complaint(capsys) == f"emorl {command}: out of memory{advice}\n"


def test_lines_are_short_and_printable(monkeypatch, capsys):
    assert main(["\x1b[31m" + "x" * 10_000]) == 2
    text = complaint(capsys)
    assert len(text) < 600
    assert "\x1b" not in text


def test_a_current_folder_that_is_gone_is_named(monkeypatch, capsys, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["train", "--config", "smoke"]) == 2
    assert complaint(capsys) == "emorl train: the current folder no longer exists\n"


@pytest.mark.parametrize(
    "use", ["from yaml import SafeLoader", "import yaml.loader", "import yaml; yaml.SafeLoader"]
)
def test_another_module_of_a_packages_name_is_named(monkeypatch, capsys, tmp_path, use):
    (tmp_path / "yaml.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "yaml"]:
        monkeypatch.delitem(sys.modules, name)
    module = importlib.import_module("emorl.cli.info")
    monkeypatch.setattr(module, "run", lambda arguments: exec(use))
    assert main(["info"]) == 2
    assert complaint(capsys).endswith(f": is {tmp_path}/yaml.py the package yaml?\n")


def test_letters_that_a_terminal_lacks_are_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(
        importlib.import_module("emorl.cli.info"), "run", lambda arguments: print("é \udcff") or 0
    )
    assert main(["info"]) == 0
    assert stream.buffer.getvalue() == rb"\xe9 \udcff" + b"\n"


def test_help_needs_no_docstrings(monkeypatch):
    """As with python -OO."""
    monkeypatch.setattr(DataConfig, "__doc__", None)
    assert "--data.train  " in describe_keys("monet")


def test_a_backend_that_matplotlib_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    before = matplotlib.rcParams["backend"]
    backend._import_matplotlib()
    assert "MPLBACKEND" not in os.environ
    assert matplotlib.rcParams["backend"] == before
    monkeypatch.setenv("MPLBACKEND", "svg")
    backend._import_matplotlib()
    assert (os.environ["MPLBACKEND"], matplotlib.rcParams["backend"]) == ("svg", "svg")
    matplotlib.rcParams["backend"] = before


@pytest.mark.parametrize("name", ["module://matplotlib_inline.backend_inline", "widget"])
def test_the_backend_of_a_notebook_is_not_needed(name):
    """As `!emorl report RUN` inherits it from a notebook in another environment."""
    code = """
import sys
sys.modules |= {"matplotlib_inline": None, "ipympl": None}
import emorl.report
from matplotlib import pyplot
pyplot.figure()
"""
    environment = os.environ | {"MPLBACKEND": name}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr


def test_faults_of_the_program_keep_their_traceback(monkeypatch):
    def fail(arguments: list[str]) -> int:
        raise RuntimeError("a fault")

    monkeypatch.setattr(importlib.import_module("emorl.cli.info"), "run", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["info"])
    monkeypatch.setattr(importlib.import_module("emorl.cli.info"), "run", int)
    monkeypatch.setenv("EMORL_TRACEBACK", "1")
    with pytest.raises(TypeError):
        main(["info"])


def test_a_run_leaves_everything(run_dir):
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "tensorboard",
        "checkpoints/step-00000002/training.pt",
        "pictures/step-00000002/decomposition.png",
    ):
        assert (run_dir / name).exists(), name
    row = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 2
    assert -1 <= row["fg_ari"] <= 1
    assert row["loss"] is not None


@pytest.mark.parametrize("model", [name for name in MODELS if name != "efficient_morl"])
def test_every_other_model_trains_is_evaluated_and_reported(model, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "--model", model, "--config", "smoke", "--out", str(run), *SHORT]) == 0
    assert main(["evaluate", str(run), "--images", "4"]) == 0
    assert "tetrominoes (test): 4 images, " in capsys.readouterr().out
    metrics = json.loads((run / "evaluation/tetrominoes.json").read_text())["metrics"]
    for name in ("fg_ari", "mse", "nll", "kl"):
        assert metrics[name]["count"] == 4
    assert main(["report", str(run)]) == 0
    report = (run / "report.html").read_text()
    assert all(meaning(name)[0] in report for name in metrics)


def test_a_report_has_a_viewer_and_compares(run_dir, tmp_path, capsys):
    assert "<h2>Viewer</h2>" in (run_dir / "report.html").read_text()
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    shutil.rmtree(other / "checkpoints")
    assert main(["report", str(run_dir), str(other)]) == 0
    assert capsys.readouterr().out == f"{run_dir / 'comparison.html'}\n"
    page = (run_dir / "comparison.html").read_text()
    assert 'aria-label="Viewer of smoke"' in page
    assert "There is no viewer: " in page


def test_trained_models_are_compared_by_name(tmp_path, capsys):
    page = tmp_path / "page.html"
    names = ["tetrominoes-laptop", "slot_attention/tetrominoes-laptop"]
    assert main(["report", *names, "--out", str(page)]) == 0
    text = page.read_text()
    for name in ("efficient_morl/tetrominoes-laptop", "slot_attention/tetrominoes-laptop"):
        assert f'aria-label="Viewer of {name}"' in text
    assert "not complete" not in text
    capsys.readouterr()
    assert main(["report", *names]) == 2
    assert "--out: needed, since tetrominoes-laptop is no run" in capsys.readouterr().err
    assert main(["report", names[0], "--out", str(tmp_path)]) == 2
    assert "--out: expected a file" in capsys.readouterr().err


def test_the_written_configuration_runs_again(run_dir, tmp_path):
    """Bit for bit: the file is complete."""
    again = tmp_path / "again"
    assert main(["train", "--config", str(run_dir / "config.yaml"), "--out", str(again)]) == 0
    assert yaml.safe_load((again / "config.yaml").read_text()) == yaml.safe_load(
        (run_dir / "config.yaml").read_text()
    )
    weights = "checkpoints/step-00000002/model.safetensors"
    assert (again / weights).read_bytes() == (run_dir / weights).read_bytes()


@pytest.mark.parametrize("change", ["learning_rate=0.5", "seed=3", "optimizer=muon"])
def test_a_finished_run_keeps_its_record(run_dir, tmp_path, capsys, change):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    kept = {p: p.read_bytes() for p in (copy / "config.yaml", copy / "data.json")}
    code = main(["train", "--out", str(copy), "--resume", "auto", f"--trainer.{change}"])
    told = capsys.readouterr()
    if change.startswith("optimizer"):
        assert code == 2
    else:
        assert code == 0
        assert "nothing is trained, and config.yaml stays as it is" in told.err
        assert "changed since" not in told.err
    assert {p: p.read_bytes() for p in kept} == kept


def test_a_run_cannot_have_fewer_steps_than_are_done(run_dir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    config = (copy / "config.yaml").read_bytes()
    assert main(["train", "--out", str(copy), "--resume", "auto", "--trainer.steps", "1"]) == 2
    assert "trainer.steps: expected at least 2, which are done, got 1" in complaint(capsys)
    assert (copy / "config.yaml").read_bytes() == config


def test_a_run_goes_on_without_its_configuration(run_dir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    for given in ([], ["--config", "smoke"]):
        assert main(["train", *given, "--out", str(copy)]) == 2
        assert "holds a run; go on with --resume auto" in capsys.readouterr().err
    options = ["--out", str(copy), "--resume", "auto", "--trainer.steps", "3"]
    assert main(["train", *options]) == 0
    text = capsys.readouterr().err
    assert "changed since the run began: trainer.steps from 2 to 3" in text
    assert "going on from" in text
    assert (copy / "checkpoints/step-00000003").is_dir()


def test_evaluate_a_run_prints_and_stores(run_dir, tmp_path, capsys):
    extra = tmp_path / "new" / "result.json"
    line = ["evaluate", str(run_dir), "--images", "6", "--json", str(extra)]
    assert main([*line, "--refinement-steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "tetrominoes (test): 6 images, 2 refinement steps" in printed
    name = "tetrominoes-refinement-steps2.json"
    stored = json.loads((run_dir / "evaluation" / name).read_text())
    assert stored == json.loads(extra.read_text())
    assert stored["refinement_steps"] == 2
    assert stored["noise"].startswith("each image's own, of seed and index")
    assert stored["checkpoint"].endswith("step-00000002")
    for name in ("fg_ari", "ari", "miou", "fg_miou", "mse", "nll", "kl", "kl_refinement_2"):
        assert stored["metrics"][name]["count"] == 6
        assert name in printed


def test_another_protocol_has_its_own_files(run_dir, capsys):
    line = ["evaluate", str(run_dir), "--protocol", "mean", "--samples", "2", "--images", "3"]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "protocol mean: the mean of each posterior" in printed
    assert "note: no DCI: 9 objects at most, 100 are needed" in printed
    place = run_dir / "evaluation" / "tetrominoes-mean-samples2.json"
    stored = json.loads(place.read_text())
    assert [*stored["seeds"]] == ["0", "1"]
    rows = [*csv.DictReader(place.with_suffix(".csv").read_text().splitlines())]
    assert [(row["seed"], row["image"]) for row in rows] == [
        (seed, image) for seed in "01" for image in "012"
    ]
    mean = sum(float(row["mse"]) for row in rows) / 6
    assert stored["metrics"]["mse"]["mean"] == pytest.approx(mean, rel=1e-12)
    low, high = (stored["metrics"]["mse"][name] for name in ("low", "high"))
    assert low <= mean <= high


@pytest.mark.parametrize("beside", [False, True], ids=["same name", "same folder"])
def test_runs_on_other_files_are_not_put_together(run_dir, tmp_path, capsys, monkeypatch, beside):
    """Nor is any measured."""
    runs, places = [], []
    for name in "ab":
        runs.append(shutil.copytree(run_dir, tmp_path / name / "run"))
        images = np.random.default_rng(0).integers(0, 256, (2, 35, 35, 3), np.uint8)
        place = tmp_path / ("data" if beside else name) / f"{name if beside else 'data'}.npy"
        place.parent.mkdir(exist_ok=True)
        np.save(place, images)
        np.save(place.with_name(f"{place.stem}_masks.npy"), images[..., 0])
        places.append(f"{place}, 35x35")
        config = yaml.safe_load((runs[-1] / "config.yaml").read_text())
        config["data"]["held_out"] = str(place)
        (runs[-1] / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(importlib.import_module("emorl.cli.evaluate"), "_measure", None)
    assert main(["evaluate", *map(str, runs), "--images", "2"]) == 2
    assert f"source {' and '.join(places)}" in complaint(capsys)


def test_several_runs_are_compared_and_failures_counted(run_dir, tmp_path, capsys):
    place = tmp_path / "all.json"
    line = ["evaluate", str(run_dir), str(tmp_path / "no"), "--images", "2", "--json", str(place)]
    assert main(line) == 1
    printed = capsys.readouterr().out
    assert "mean over" not in printed  # of one
    assert f"could not be evaluated: {tmp_path / 'no'}: no such folder" in printed
    assert "FG-ARI below 0.8, which counts as failed: " in printed
    stored = json.loads(place.read_text())
    assert stored["metrics"]["mse"]["runs"] == len(stored["results"]) == 1
    assert main(["evaluate", str(tmp_path / "no"), str(tmp_path / "no2")]) == 2
    assert "no run could be evaluated" in complaint(capsys)


@pytest.mark.parametrize(
    ("options", "hidden", "message"),
    [
        (["--protocol", "paper", "--images", "4"], "", "expected 320 images and 1 sample, got 4"),
        (["--lpips"], "torchmetrics", "torchmetrics is not installed: pip install 'emorl[lpips]'"),
        (["--images", "2", "--disentanglement", "yes"], "", "6 objects at most, 100 are needed"),
    ],
)
def test_what_an_evaluation_cannot_do(run_dir, capsys, monkeypatch, options, hidden, message):
    if hidden:
        monkeypatch.setitem(sys.modules, hidden, None)
    assert main(["evaluate", str(run_dir), *options]) == 2
    assert message in complaint(capsys)


def test_a_run_of_two_names_counts_once(run_dir, tmp_path, capsys):
    again = tmp_path / "again"
    again.symlink_to(run_dir)
    table = tmp_path / "a.json"
    line = ["evaluate", str(run_dir), str(again), "--images", "2", "--json", str(table)]
    assert main(line) == 0
    assert "checkpoint" in json.loads(table.read_text())  # one result, not a comparison


def test_the_weights_of_a_run_and_its_checkpoint_count_once(run_dir, tmp_path, capsys):
    """The run keeps the result, in either order."""
    newest = sorted((run_dir / "checkpoints").iterdir())[-1]
    options = ["--split", "val", "--images", "2", "--seed", "9", "--json", str(tmp_path / "a.json")]
    for targets in ([newest, run_dir], [run_dir, newest]):
        assert main(["evaluate", *map(str, targets), *options]) == 0
        assert "as failed" not in capsys.readouterr().out
        assert json.loads((tmp_path / "a.json").read_text())["checkpoint"] == str(newest)
        (run_dir / "evaluation/tetrominoes-val-seed9.json").unlink()
    missing = str(tmp_path / "no")
    assert main(["evaluate", str(run_dir), str(newest), missing, *options]) == 1
    assert "could not be evaluated: " in capsys.readouterr().out


def test_nothing_is_written_beside_a_trained_model(capsys):
    place = TRAINED / "slot_attention" / "tetrominoes-laptop"
    before = sorted(place.iterdir())
    assert main(["evaluate", str(place), "--images", "2"]) == 0
    for command in ("traverse", "report"):
        assert main([command, str(place)]) == 2
        assert f"--out: needed, since {place} is no run" in complaint(capsys)
    assert sorted(place.iterdir()) == before


def test_a_sweep_is_printed_and_kept(run_dir, capsys):
    line = ["evaluate", str(run_dir), "--images", "2", "--sweep"]
    assert main([*line, "refinement-steps=0..1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\nrefinement steps +fg_ari +fg_miou +mse\n", printed)
    assert re.search(r"\n +1\*  +\S+ \+- \S+ \(\S+ to \S+\)", printed)
    assert "no DCI" not in printed
    files = sorted((run_dir / "sweeps").iterdir())
    stem = "tetrominoes-refinement-steps0to1"
    assert [path.name for path in files] == [f"{stem}.{kind}" for kind in ("csv", "json", "png")]
    assert all(f"written: {path}\n" in printed for path in files)
    stored = json.loads(files[1].read_text())
    assert [point["value"] for point in stored["points"]] == [0, 1]
    rows = [*csv.DictReader(files[0].read_text().splitlines())]
    assert [row["refinement_steps"] for row in rows] == ["0", "0", "1", "1"]
    assert [row["nll_1"] == "" for row in rows] == [True, True, False, False]
    assert not (run_dir / "evaluation" / files[1].name).exists()
    plot, checkpoint = run_dir.parent / "a.png", run_dir / "checkpoints/step-00000002"
    alone = [*line, "num-slots=2,4", "--plot", str(plot), "--data", "tetrominoes"]
    alone[1] = str(checkpoint)
    assert main(alone) == 0
    assert f"written: {plot}\n" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len([*(run_dir / "sweeps").iterdir()]) == 3
    line[3] = "1"
    assert main([*line, "refinement-steps=0..1"]) == 2
    assert "holds the result of 2 images, more than 1; move it away" in complaint(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--refinement-steps", "2"], "--sweep: expected no --refinement-steps beside it"),
        (["--disentanglement", "yes"], "--sweep: leaves out --disentanglement"),
        (["no"], "--sweep: expected one run, got 2"),
    ],
)
def test_what_does_not_go_with_a_sweep(run_dir, capsys, options, message):
    line = ["evaluate", str(run_dir), *options, "--sweep", "refinement-steps=0..1"]
    assert main(line) == 2
    assert message in complaint(capsys)
    assert main(["evaluate", str(run_dir), "--plot", "a.png"]) == 2
    assert "--plot: is of --sweep" in complaint(capsys)


def test_a_scikit_learn_that_is_broken_is_a_note(run_dir, capsys, monkeypatch):
    def broken(package):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("emorl.evaluation.representations.LEAST_OBJECTS", 0)
    monkeypatch.setattr("emorl.evaluation.representations.require_package", broken)
    assert main(["evaluate", str(run_dir), "--images", "4", "--seed", "6"]) == 0
    assert "note: no DCI: libgomp.so.1: cannot open" in capsys.readouterr().out


def test_nothing_is_measured_where_a_result_cannot_be_replaced(run_dir, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    assert main(["evaluate", str(run_dir), "--images", "4", "--seed", "7"]) == 0
    capsys.readouterr()
    line = ["evaluate", str(other), str(run_dir), "--images", "2", "--seed", "7"]
    assert main(line) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "holds the result of 4 images, more than 2" in told.err


def test_an_evaluation_does_without_scikit_learn(run_dir, capsys, monkeypatch):
    monkeypatch.setattr("emorl.evaluation.representations.LEAST_OBJECTS", 0)
    for module in [m for m in sys.modules if m.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    line = ["evaluate", str(run_dir), "--images", "4", "--seed", "5"]
    assert main(line) == 0
    lack = "pip install 'emorl[evaluation]'"
    assert f"note: no DCI: sklearn is not installed: {lack}" in capsys.readouterr().out
    assert main([*line, "--disentanglement", "yes"]) == 2
    assert lack in complaint(capsys)


def test_dimensions_are_traversed(run_dir, tmp_path, capsys):
    line = ["traverse", str(run_dir), "--images", "1", "--measured", "2", "--values", "3"]
    assert main([*line, "--dimensions", "2"]) == 0
    place = run_dir / "traversals"
    files = sorted(path.name for path in place.iterdir())
    assert files == ["image-0000.gif", "image-0000.png", "traversals.json"]
    assert f"written: {place / 'image-0000.gif'}" in capsys.readouterr().out
    record = json.loads((place / "traversals.json").read_text())
    assert len(record["dimensions"]) <= 2
    assert record["split"] == "test"
    assert len(record["activeness"]) == len(record["low"]) == 8
    assert all(low <= high for low, high in zip(record["low"], record["high"], strict=True))
    with Image.open(place / "image-0000.gif") as film:
        assert film.format == "GIF"
    checkpoint = run_dir / "checkpoints/step-00000002"
    assert main(["traverse", str(checkpoint)]) == 2
    assert "--out: needed, since" in complaint(capsys)


def test_a_film_needs_its_package(run_dir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["traverse", str(run_dir), "--mp4"]) == 2
    assert "imageio_ffmpeg is not installed: pip install 'emorl[video]'" in complaint(capsys)


def test_own_pictures_are_segmented(run_dir, tmp_path, capsys):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    (pictures / "sub").mkdir(parents=True)
    for name, size in {"a.png": (35, 35), "a.jpg": (50, 20), "sub/b.png": (7, 9)}.items():
        Image.new("RGB", size, "red").save(pictures / name)
    (pictures / "bad.png").write_bytes(b"no")
    Image.new("L", (7, 9), 1).save(pictures / "sub/b_mask.png")  # a label map, no picture
    assert main(["segment", str(run_dir), str(pictures), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "bad.png: not a picture (PNG, JPEG, WEBP, BMP)" in printed.err
    assert "written: 3 pictures, 1 left out" in printed.out
    for folder in ("labels", "overlays"):
        made = {str(p.relative_to(out / folder)) for p in (out / folder).rglob("*.png")}
        assert made == {"a.png", "a.jpg.png", "sub/b.png"}
    with Image.open(out / "labels/a.jpg.png") as labels:
        assert labels.size == (50, 20)
        assert labels.getextrema()[1] < 4
    assert (out / "contact.png").is_file()
    for folder, place in {pictures: pictures / "out", out / "labels": out, out: out}.items():
        assert main(["segment", str(run_dir), str(folder), "--out", str(place)]) == 2
        assert "expected a folder apart from the pictures" in complaint(capsys)
    line = ["segment", str(run_dir), str(pictures), "--out", str(out)]
    assert main([*line, "--num-slots", "257"]) == 2
    assert "--num-slots: expected a whole number from 1 to 256, got '257'" in complaint(capsys)
    Image.new("RGB", (9, 9)).save(pictures / "a.jpg.png")
    assert main(["segment", str(run_dir), str(pictures), "--out", str(out)]) == 2
    assert "expected another name, its results would replace" in complaint(capsys)
    (pictures / "sub/b.png").write_bytes(b"no")
    assert main(["segment", str(run_dir), str(pictures / "sub"), "--out", str(out)]) == 2
    assert "no picture that can be read, 1 that cannot" in capsys.readouterr().err


def test_evaluate_a_checkpoint_stores_nothing_in_the_run(run_dir, capsys):
    place = run_dir / "checkpoints/step-00000002"
    before = sorted(run_dir.rglob("*"))
    assert main(["evaluate", str(place), "--images", "2", "--data", "tetrominoes-real10"]) == 0
    assert "tetrominoes-real10" in capsys.readouterr().out
    assert sorted(run_dir.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", "x"),
        ("config.json", "{"),
        ("config.json", '{"model": "efficient_morl", "slot_dim": 9}'),
        ("config.json", '{"model": "efficient_morl", "slots": 9}'),
    ],
    ids=["weights", "torn", "size", "key"],
)
def test_damaged_files_are_named(run_dir, tmp_path, capsys, name, content):
    model = tmp_path / "model"
    older = shutil.ignore_patterns("SHA256SUMS")
    shutil.copytree(run_dir / "checkpoints/step-00000002", model, ignore=older)
    (model / name).write_text(content)
    assert main(["evaluate", str(model), "--data", "tetrominoes", "--images", "1"]) == 2
    assert f"{model}: damaged, or another version's: " in complaint(capsys)


def test_a_model_folder_needs_data(run_dir, tmp_path, capsys):
    shutil.copytree(run_dir / "checkpoints/step-00000002", tmp_path / "model")
    assert main(["evaluate", str(tmp_path / "model")]) == 2
    assert "--data: needed, since" in complaint(capsys)


def test_report_is_written_anew(run_dir, capsys):
    (run_dir / "report.html").unlink()
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir / "report.html")
    assert (run_dir / "report.html").is_file()


def test_data_are_stored_and_checked(tmp_path, capsys):
    path = tmp_path / "a.h5"
    line = ["data", "generate", "tetrominoes", "--out", str(path), "--images", "5"]
    assert main([*line, "--split", "test"]) == 0
    assert main(["data", "check", str(path)]) == 0
    assert "problems: none" in capsys.readouterr().out
    copy = tmp_path / "b.h5"
    assert main(["data", "convert", str(path), "--out", str(copy), "--split", "test"]) == 0
    assert copy.is_file()


def test_a_released_checkpoint_becomes_a_model_folder(fixtures_dir, tmp_path, capsys):
    golden = fixtures_dir / "golden" / "tetrominoes_geco_i3"
    arguments = [f"{golden}.pth", "--config", f"{golden}.json", "--out", str(tmp_path / "m")]
    assert main(["convert", *arguments]) == 0
    capsys.readouterr()
    line = ["evaluate", str(tmp_path / "m"), "--data", "tetrominoes-real10"]
    assert main([*line, "--refinement-steps", "0"]) == 0
    assert "10 images, 0 refinement steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "expected a released configuration"),
    ],
)
def test_a_wrong_released_configuration_is_named(tmp_path, capsys, text, message):
    (tmp_path / "net.json").write_text(text)
    line = ["convert", "x.pth", "--config", str(tmp_path / "net.json"), "--out", "y"]
    assert main(line) == 2
    assert message in complaint(capsys)
