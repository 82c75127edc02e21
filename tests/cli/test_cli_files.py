"""What commands leave behind: whole files, nothing where they are refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_viewers import small_viewers  # noqa: F401

import emorl
from emorl.cli import main
from emorl.data import open_dataset
from emorl.models import load_model
from emorl.training.config_file import find_config
from emorl.training.trainer import Trainer

SHORT = ["--trainer.steps", "2", "--trainer.picture_every", "0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    assert main(["train", "--config", "smoke", "--out", str(folder), *SHORT]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr has, which must be one line."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


def evaluate(*arguments: object) -> int:
    """Two images, unless `arguments` say otherwise."""
    options = ["--images", "2", "--batch-size", "2"]
    return main(["evaluate", str(arguments[0]), *options, *map(str, arguments[1:])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.train", "no.h5"], "no.h5: neither a file nor a generator"),
        (["--network.num_slots", "0"], "num_slots must be positive"),
        (["--trainer.batch_size", "7", "--trainer.accumulation", "2"], "expected a multiple of 2"),
        (["--trainer.eval_every", "1", "--data.train", "tetrominoes-real10"], "no held-out images"),
    ],
)
def test_a_refused_training_leaves_no_folder(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    line = ["train", "--config", "smoke", "--out", "runs/mine", *SHORT]
    assert main([*line, *options]) == 2
    assert message in complaint(capsys)
    assert not [*tmp_path.iterdir()]


def test_a_training_refused_at_its_first_step_leaves_no_folder(tmp_path, capsys, monkeypatch):
    """As by images that cannot be read; the corrected command then begins."""
    kind = type(open_dataset("tetrominoes"))

    def fail(self, indices):
        raise ValueError("image 7 cannot be read")

    line = ["train", "--config", "smoke", "--out", str(tmp_path / "runs/mine"), *SHORT]
    with monkeypatch.context() as patch:
        patch.setattr(kind, "__getitems__", fail)
        assert main(line) == 2
    assert "image 7 cannot be read" in complaint(capsys)
    assert not [*tmp_path.iterdir()]
    assert main(line) == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "--json: expected a file, got a folder"), ("file/a.json", "is not a folder")],
)
def test_the_json_file_is_checked_before_the_work(run, capsys, monkeypatch, path, message):
    (run.parent / "file").touch()
    monkeypatch.setattr("emorl.models.find_model", None)
    assert evaluate(run, "--json", run.parent / path) == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize("split", ["../../test", "/test", "", "a b"])
def test_a_split_is_a_name(run, capsys, split):
    before = content(run)
    assert evaluate(run, "--split", split) == 2
    assert "expected a name" in complaint(capsys)
    assert content(run) == before


def test_who_stops_the_last_step_waits_for_no_report(tmp_path, capsys, monkeypatch):
    train_step = Trainer._train_step

    def stopped(trainer: Trainer, images: torch.Tensor, stop: bool) -> dict[str, float]:
        if trainer.step == trainer.config.steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(trainer, images, stop)

    command = ["train", "--config", "smoke", "--out", str(tmp_path / "run"), *SHORT]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stopped)
        assert main(command) == 130
    assert "stopped after step 2 of 2 and saved; go on with: " in capsys.readouterr().out
    assert not (tmp_path / "run/report.html").exists()
    assert main([*command, "--resume", "auto"]) == 0
    assert "2 steps had been done, the report is written; see " in capsys.readouterr().out
    assert (tmp_path / "run/report.html").exists()


def test_a_full_disk_leaves_the_evaluation_before(run, capsys, monkeypatch):
    assert evaluate(run, "--images", "1") == 0
    capsys.readouterr()
    before = content(run)

    def write(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write)
    assert evaluate(run, "--images", "2") == 2
    assert "evaluation/tetrominoes.json: No space left on device" in complaint(capsys)
    assert main(["report", str(run)]) == 2
    assert "report.html: No space left on device" in complaint(capsys)
    assert content(run) == before


def test_a_full_disk_ends_a_training_by_one_line(run, capsys, monkeypatch):
    plain = Path.write_bytes

    def write(path: Path, data: bytes) -> int:
        if path.name == "training.pt":
            plain(path, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    before = content(run / "checkpoints")
    assert main(["train", "--out", str(run), "--resume", "auto", "--trainer.steps", "3"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("checkpoints/step-00000003: No space left on device")
    assert content(run / "checkpoints") == before
    monkeypatch.undo()
    assert main(["train", "--out", str(run), "--resume", "auto"]) == 0


@pytest.mark.parametrize("place", ["", "checkpoints/step-00000002", "checkpoints/step-00000009"])
def test_convert_leaves_a_run_alone(run, fixtures_dir, capsys, place):
    golden = fixtures_dir / "golden/tetrominoes_geco_i3"
    line = ["convert", f"{golden}.pth", "--config", f"{golden}.json", "--out"]
    before = content(run)
    assert main([*line, str(run / place)]) == 2
    assert "belongs to a run; choose a folder of its own" in complaint(capsys)
    assert content(run) == before
    alone = Path(shutil.copytree(run / "checkpoints/step-00000002", run.parent / "copy"))
    assert main([*line, str(alone)]) == 2
    assert "belongs to a run" in complaint(capsys)


def test_an_altered_released_checkpoint_is_refused(fixtures_dir, tmp_path, capsys):
    golden = fixtures_dir / "golden/tetrominoes_geco_i3"
    altered = tmp_path / "altered.pth"
    data = bytearray(Path(f"{golden}.pth").read_bytes())
    data[len(data) // 2] ^= 4
    altered.write_bytes(data)
    line = ["convert", str(altered), "--config", f"{golden}.json", "--out", str(tmp_path / "m")]
    assert main(line) == 2
    assert "altered.pth: damaged, or more than tensors and plain values: " in complaint(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["altered.pth"]


def test_a_model_of_weights_that_are_not_finite_is_not_measured(run, tmp_path, capsys):
    model = load_model(run)
    next(model.parameters()).data.view(-1)[0] = torch.nan
    model.save_pretrained(tmp_path / "bad")
    assert evaluate(tmp_path / "bad", "--data", "tetrominoes") == 2
    assert "is not finite" in complaint(capsys)


def command(*arguments: object, **options) -> subprocess.Popen:
    line = [sys.executable, "-m", "emorl", *map(str, arguments)]
    return subprocess.Popen(line, text=True, **options)


def test_a_training_into_a_pipe_without_a_reader_is_finished(tmp_path):
    """Its output has gone from the start; only the folder tells."""
    reading, writing = os.pipe()
    os.close(reading)
    line = ["train", "--config", "smoke", "--out", tmp_path / "run", *SHORT]
    process = command(*line, stdout=writing, stderr=writing)
    os.close(writing)
    assert process.wait(300) == 0
    assert (tmp_path / "run/report.html").is_file()


@pytest.mark.parametrize(
    ("line", "streams", "code"),
    [
        ("train --x", "2>&-", 2),
        ("train --x", "2>/dev/full", 2),
        ("train --x", ">&- 2>&-", 2),
        ("trian", "2>&-", 2),
        ("--version", ">/dev/full", 2),
        ("--version", ">/dev/full 2>&-", 2),
        ("--version", ">&-", 0),
        ("info", ">/dev/full 2>/dev/full", 2),
        ("train --x", "no reader", 2),
        ("--version", "no reader", 1),
    ],
)
def test_the_exit_code_stays_where_nobody_reads(tmp_path, line, streams, code):
    """Neither a traceback, nor the 120 of an interpreter that cannot write at its exit."""
    reading, writing = os.pipe()
    os.close(reading)
    gone, shell = (writing, "") if streams == "no reader" else (None, streams)
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with (tmp_path / "out").open("w+") as out:
        done = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m emorl {line} {shell}"],
            stdout=gone or out,
            stderr=gone or out,
            env=environment,
            check=False,
        )
        out.seek(0)
        text = out.read()
    os.close(writing)
    assert done.returncode == code
    assert text.count("\n") == (code == 2 and "2>" not in streams and gone is None)


@pytest.mark.parametrize("buffered", ["", "1"])
def test_output_into_a_full_disk_is_named(buffered):
    """The error of a stream names none."""
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m emorl --version >/dev/full"],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": buffered},
        text=True,
        check=False,
    )
    line = "emorl --version: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path):
    """What a library writes to stderr would stand in it."""
    code = (
        "import emorl.cli; emorl.cli.main(['--version']); "
        f"raise SystemExit(open('{tmp_path / 'a'}', 'w').fileno())"
    )
    line = f'{sys.executable} -c "{code}" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", line], check=False).returncode > 2


def test_a_second_training_is_refused_by_one_line(run, capsys):
    from emorl.runs import RunFolder
    from emorl.runs.lock import RunLock

    before = content(run)
    lock = RunLock(RunFolder(run))
    assert main(["train", "--out", str(run), "--resume", "auto"]) == 2
    assert f"process {os.getpid()} is training in this folder" in complaint(capsys)
    lock.release()
    assert content(run) == before


def test_every_path_may_begin_at_home(fixtures_dir, tmp_path, monkeypatch, capsys):
    """Also where no shell expands it, as in `--out=~/run` and in a file."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "elsewhere")
    for ending in ("pth", "json"):
        shutil.copy(fixtures_dir / f"golden/tetrominoes_geco_i3.{ending}", home / f"net.{ending}")
    for split in ("train", "val"):
        made = ["--images", "40", f"--out=~/{split}.h5", f"--split={split}"]
        assert main(["data", "generate", "tetrominoes", *made]) == 0
    smoke = (
        Path(find_config("smoke")).read_text().replace("train: tetrominoes", "train: ~/train.h5")
    )
    (home / "my.yaml").write_text(smoke.replace("data:", "data:\n  held_out: ~/val.h5"))
    assert "train: ~/train.h5" in (home / "my.yaml").read_text()
    for line in (
        ["train", "--config=~/my.yaml", "--out=~/run", *SHORT],
        ["train", "--out=~/run", "--resume", "auto", "--trainer.steps", "3"],
        ["evaluate", "~/run", "--data=~/val.h5", "--split=val", "--images=4", "--json=~/a.json"],
        ["report", "~/run"],
        ["convert", "~/net.pth", "--config=~/net.json", "--out=~/model"],
        ["data", "check", "~/val.h5"],
        ["data", "convert", "~/val.h5", "--split=val", "--out=~/again.h5"],
    ):
        assert main(line) == 0, capsys.readouterr().err
    load_model("~/run").save_pretrained("~/copy")
    load_model("~/copy")
    written = {path.name for path in home.iterdir() if not path.name.startswith(".")}
    assert written == {  # matplotlib has caches there
        *("net.pth", "net.json", "train.h5", "val.h5", "my.yaml", "run", "a.json", "model"),
        *("again.h5", "copy"),
    }
    assert (home / "run/evaluation/val-val.json").is_file()
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_no_command_takes_a_path_in_another_way():
    for module in Path(emorl.__file__).parent.rglob("*.py"):
        assert "type=Path" not in module.read_text(), module


def test_each_evaluation_of_a_run_is_kept(run, capsys):
    """By what was asked for; a result of more images, or of another file, is not replaced."""
    for split in ("a", "b"):
        (run.parent / split).mkdir()
        made = ["--images", "4", "--out", str(run.parent / split / "test.h5")]
        assert main(["data", "generate", "tetrominoes", *made]) == 0
    file = ["--data", run.parent / "a/test.h5", "--split", "train"]
    written = set()
    for options, name in (
        ([], "tetrominoes"),
        (["--seed", "1"], "tetrominoes-seed1"),
        (["--num-slots", "2"], "tetrominoes-num-slots2"),
        (["--split", "val", "--seed", "7"], "tetrominoes-val-seed7"),
        (file, "test-train"),
        ([*file, "--value-range", "[0,255]"], "test-train-values0to255"),
        (["--crop", "[0,35,0,35]", "--size", "[35,35]"], "tetrominoes-crop-0x35x0x35-size35x35"),
    ):
        assert evaluate(run, *options) == 0, capsys.readouterr().err
        path = run / "evaluation" / f"{name}.json"
        assert f"written: {path}" in capsys.readouterr().out
        written.add(name)
    assert {path.stem for path in (run / "evaluation").iterdir()} == written
    assert main(["report", str(run)]) == 0
    report = (run / "report.html").read_text()
    assert all(name in report for name in written)
    capsys.readouterr()
    before = content(run)
    other = ["--data", run.parent / "b/test.h5", "--split", "train"]
    for options, its in (
        (["--images", "1"], "2 images, more than 1"),
        (other, "a/test.h5, 35x35; move"),
    ):
        assert evaluate(run, *options) == 2
        assert its in complaint(capsys)
    assert content(run) == before
    assert evaluate(run, "--images", "3") == 0
    assert "replaced: " in capsys.readouterr().out
    path = run / "evaluation/tetrominoes.json"
    result = json.loads(path.read_text())
    result["metrics"]["lpips"] = result["metrics"]["mse"]
    path.write_text(json.dumps(result))
    assert evaluate(run, "--images", "3") == 2
    assert "holds lpips, which would be lost; move it away" in complaint(capsys)
    assert json.loads(path.read_text()) == result


def test_a_configuration_that_misspells_its_images(tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text("data: {train: tetrominos}")
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "run")]) == 2
    told = "since mine.yaml's tetrominos is not there; did you mean tetrominoes?"
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
