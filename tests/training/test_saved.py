"""What a checkpoint holds is compared before it is used; a bad one does not stop a run."""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from training_fakes import FakeConfig, FakeImages, FakeModel

from emorl.runs import RunFolder, checkpoint
from emorl.runs.integrity import write_checksums
from emorl.training.config import GECOConfig, TrainerConfig
from emorl.training.saved import read
from emorl.training.trainer import NonFiniteError, Trainer

SETTINGS = {
    "batch_size": 6,
    "warmup_steps": 2,
    "checkpoint_every": 2,
    "picture_every": 0,
    "device": "cpu",
    "geco": GECOConfig(target_per_dim=0.1),
}


def trainer(folder: Path, steps: int, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    config = TrainerConfig(steps=steps, **{**SETTINGS, **changes})
    return Trainer(FakeModel(), FakeImages(), config, folder, resume=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps that has kept the checkpoints of steps 4, 6 and 8."""
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder, 8).run()
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def weights(run: Path, step: int = 8) -> dict[str, torch.Tensor]:
    path = RunFolder(run).checkpoint(step) / "model.safetensors"
    return safetensors.torch.load_file(path)


def rewrite(place: Path, state: Any) -> None:
    """Store another state, as an older version would: without checksums."""
    torch.save(state, place / "training.pt")
    (place / "SHA256SUMS").unlink(missing_ok=True)


def set_entry(*keys: Any, value: Any) -> Callable[[dict], None]:
    def change(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def drop_entry(*keys: Any) -> Callable[[dict], None]:
    def change(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


MOMENT = ("optimizers", 0, "state", 0)
ODD_STATES = {
    "shape": (
        set_entry(*MOMENT, "exp_avg", value=torch.zeros(3)),
        r"optimizers\[0\]\.state\[0\]\.exp_avg: expected torch\.float32 \[3, 3\], got .* \[3\]",
    ),
    "dtype": (
        set_entry(*MOMENT, "exp_avg", value=torch.zeros(3, 3).double()),
        r"exp_avg: expected torch\.float32 \[3, 3\], got torch\.float64",
    ),
    "step": (set_entry(*MOMENT, "step", value=torch.zeros(2)), r"\.step: expected .* \[\], got"),
    "number": (set_entry(*MOMENT, "step", value=3), r"\.step: expected a tensor, got 3"),
    "nan": (
        set_entry(*MOMENT, "exp_avg_sq", value=torch.full((3, 3), torch.nan)),
        r"exp_avg_sq: expected finite numbers",
    ),
    "missing moment": (drop_entry(*MOMENT, "exp_avg"), r"state\[0\]: exp_avg is missing"),
    "odd moment": (
        set_entry(*MOMENT, "max", value=torch.ones(1)),
        r"state\[0\]: unknown entry 'max'",
    ),
    "odd parameter": (
        set_entry("optimizers", 0, "state", 99, value={}),
        r"optimizers\[0\]\.state: unknown entry 99",
    ),
    "groups": (
        set_entry("optimizers", 0, "param_groups", 0, "params", value=[0]),
        r"optimizers\[0\]\.param_groups: expected the parameters \[\[0, 1, 2\]\]",
    ),
    "no groups": (
        set_entry("optimizers", 0, "param_groups", value=3),
        r"param_groups: expected the parameters",
    ),
    "no optimiser": (set_entry("optimizers", value=[]), "optimizers: expected a list of 1"),
    "no list": (set_entry("optimizers", value=None), "optimizers: expected a list of 1"),
    "name": (set_entry("optimizer", value="sgd"), r"optimizer: expected one of .*, got 'sgd'"),
    "missing": (drop_entry("geco"), r"training\.pt: geco is missing"),
    "unknown": (set_entry("gecko", value=1), r"training\.pt: unknown entry 'gecko'"),
    "another step": (set_entry("step", value=6), "step: expected 8, got 6"),
    "no step": (set_entry("step", value="8"), "step: expected 8, got '8'"),
    "geco": (set_entry("geco", "moving_average", value=None), r"geco\.moving_average: expected"),
    "infinite geco": (
        set_entry("geco", "raw_multiplier", value=float("inf")),
        r"geco\.raw_multiplier: expected a finite number, got inf",
    ),
    "precision": (set_entry("precision", value=16), "precision: expected a name, got 16"),
}


@pytest.mark.parametrize("name", ODD_STATES)
def test_an_odd_state_is_named_and_left_out(run, name, capsys):
    change, message = ODD_STATES[name]
    place = RunFolder(run).checkpoint(8)
    state = checkpoint.load_state(place)
    change(state)
    rewrite(place, state)
    with pytest.raises(ValueError, match=rf"training\.pt: .*{message}|{message}"):
        read(FakeModel, place)
    resumed = trainer(run, 8)
    assert resumed.step == 6
    resumed.run()
    assert "left out, and renamed to step-00000008.damaged: " in capsys.readouterr().err
    assert (RunFolder(run).checkpoints / "step-00000008.damaged").is_dir()


@pytest.mark.parametrize("content", [[], 3, None, {}, "text", torch.ones(3)], ids=repr)
def test_a_state_that_is_none_is_named(run, content):
    place = RunFolder(run).checkpoint(8)
    rewrite(place, content)
    with pytest.raises(ValueError, match=r"training\.pt: (expected names|.* is missing)"):
        read(FakeModel, place)


def test_overlapping_numbers_do_not_reach_the_optimiser(run):
    """Of the right shape, but all in one place, beyond which a fused optimiser would write."""
    place = RunFolder(run).checkpoint(8)
    state = checkpoint.load_state(place)
    moments = state["optimizers"][0]["state"][0]
    moments["exp_avg"] = torch.zeros(1).expand(3, 3)
    rewrite(place, state)
    saved = read(FakeModel, place)
    assert saved.optimizers[0][0]["exp_avg"].stride() == (3, 1)


@pytest.mark.parametrize("optimizer", ["adam", "muon", "rmsprop"])
def test_every_optimiser_goes_on_where_it_was(tmp_path, optimizer):
    trainer(tmp_path / "whole", 8, optimizer=optimizer).run()
    trainer(tmp_path / "parts", 5, optimizer=optimizer).run()
    trainer(tmp_path / "parts", 8, optimizer=optimizer).run()
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_parameter_that_was_never_moved_has_no_state(run):
    place = RunFolder(run).checkpoint(8)
    state = checkpoint.load_state(place)
    del state["optimizers"][0]["state"][1]
    rewrite(place, state)
    assert read(FakeModel, place).optimizers[0].keys() == {0, 2}


def test_settings_in_a_file_are_not_taken(run):
    place = RunFolder(run).checkpoint(8)
    state = checkpoint.load_state(place)
    state["optimizers"][0]["param_groups"][0] |= {"amsgrad": True, "betas": (2.0, "x")}
    del state["optimizers"][0]["param_groups"][0]["eps"]
    rewrite(place, state)
    resumed = trainer(run, 10)
    assert resumed.step == 8
    resumed.run()
    assert resumed.optimizers[0].param_groups[0]["betas"] == (0.9, 0.999)


def test_a_checkpoint_of_the_version_before_goes_on(run):
    """Without checksums and without the precision."""
    place = RunFolder(run).checkpoint(8)
    state = checkpoint.load_state(place)
    del state["precision"]
    rewrite(place, state)
    assert trainer(run, 10).step == 8


def remove(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:-7])


def replace_by_folder(place: Path) -> None:
    (place / "training.pt").unlink()
    (place / "training.pt").mkdir()


def replace_by_file(place: Path) -> None:
    shutil.rmtree(place)
    place.touch()


def empty(place: Path) -> None:
    shutil.rmtree(place)
    place.mkdir()


FILES = ("config.json", "model.safetensors", "training.pt")
FAULTS = {
    **{f"no {name}": remove(name) for name in FILES},
    **{f"cut {name}": cut(name) for name in (*FILES, "SHA256SUMS")},
    "folder": replace_by_folder,
    "file": replace_by_file,
    "empty": empty,
}


@pytest.mark.parametrize("keep", [1, 3], ids=["alone", "others"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_newest_checkpoint_does_not_stop_a_run(run, finished, name, keep, capsys):
    """The run goes on from the one before, or begins anew, to the same bits, and can go on."""
    if keep == 1:
        for step in (4, 6):
            shutil.rmtree(RunFolder(run).checkpoint(step))
    FAULTS[name](RunFolder(run).checkpoint(8))
    resumed = trainer(run, 8)
    assert resumed.step == (6 if keep > 1 else 0)
    resumed.run()
    line = next(x for x in capsys.readouterr().err.splitlines() if x.startswith("left out"))
    assert "renamed to step-00000008.damaged: " in line
    reason = line.partition(": ")[2]
    words = ("missing", "damaged", "not listed", "expected a file")
    assert any(word in reason for word in words), reason
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(finished).items())
    again = trainer(run, 10)
    assert again.step == 8
    again.run()


def test_two_bad_checkpoints_in_turn(run):
    for step in (8, 6):
        (RunFolder(run).checkpoint(step) / "training.pt").unlink()
    assert trainer(run, 8).step == 4
    trainer(run, 8).run()
    (RunFolder(run).checkpoint(8) / "training.pt").unlink()
    trainer(run, 8).run()
    names = sorted(p.name for p in RunFolder(run).checkpoints.iterdir())
    assert names[-2:] == ["step-00000008", "step-00000008.damaged"]


def test_an_incomplete_checkpoint_is_replaced_when_its_step_comes(run):
    """As one that was left out by a run that ended before."""
    state = checkpoint.load_state(RunFolder(run).checkpoint(8))
    place = RunFolder(run).checkpoint(8)
    (place / "training.pt").unlink()
    checkpoint.save(place, FakeModel(), state, keep=3)
    assert checkpoint.load_state(place)["step"] == 8


def test_files_of_another_version_do_not_begin_a_run_anew(run):
    """They are good, so they are not set aside: another version reads them."""
    for step in (4, 6, 8):
        place = RunFolder(run).checkpoint(step)
        text = (place / "config.json").read_text().replace('"noise"', '"noises"')
        state = checkpoint.load_state(place)
        (place / "config.json").write_text(text)
        rewrite(place, copy.deepcopy(state))
        write_checksums(place)
    with pytest.raises(ValueError, match=r"damaged, or another version's: .*noises"):
        trainer(run, 8)
    assert len([*RunFolder(run).checkpoints.iterdir()]) == 3


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = FakeModel(FakeConfig())
    model.colours.data[1, 2] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors: colours is not finite"):
        FakeModel.from_pretrained(tmp_path)
    loaded = FakeModel.from_pretrained(tmp_path, allow_non_finite=True)
    assert torch.equal(loaded.colours.isnan(), model.colours.isnan())


def test_weights_that_became_infinite_are_not_saved(run, monkeypatch):
    resumed = trainer(run, 12)
    plain = resumed.optimizers[0].step

    def step() -> None:
        plain()
        resumed.model.colours.data[0, 0] = torch.inf

    monkeypatch.setattr(resumed.optimizers[0], "step", step)
    monkeypatch.setattr(resumed, "_require_finite", lambda row: None)
    with pytest.raises(NonFiniteError, match=r"after step 10: colours is not finite.*00000008"):
        resumed.run()
    assert checkpoint.latest(run) == RunFolder(run).checkpoint(8)


def test_a_disk_that_cannot_be_read_now_loses_no_checkpoint(run, monkeypatch):
    """The same files are whole a moment later: nothing is set aside, and no step done anew."""
    newest = RunFolder(run).checkpoint(8)
    read_bytes = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.parent == newest:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match=r"Input/output error: '.*step-00000008"):
        trainer(run, 8)
    monkeypatch.undo()
    assert trainer(run, 8).step == 8


def test_a_new_run_does_not_begin_in_the_folder_of_another(run):
    """Its checkpoints would give way to those that are there."""
    with pytest.raises(ValueError, match="step-00000008: of another run; resume=True goes on"):
        Trainer(FakeModel(), FakeImages(), TrainerConfig(steps=8, **SETTINGS), run)
