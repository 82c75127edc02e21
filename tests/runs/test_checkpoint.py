from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from training_fakes import FakeConfig, FakeModel

from emorl.runs import RunFolder, checkpoint
from emorl.runs.files import clean
from emorl.runs.folder import run_of


def save(run_dir: Path, step: int, keep: int = 3) -> Path:
    place = RunFolder(run_dir).checkpoint(step)
    checkpoint.save(place, FakeModel(), {"step": step, "values": [torch.ones(2)]}, keep=keep)
    return place


def test_a_checkpoint_is_a_model_folder_with_a_state(tmp_path):
    model = FakeModel(FakeConfig(num_slots=5))
    place = RunFolder(tmp_path).checkpoint(1000)
    checkpoint.save(place, model, {"step": 1000, "geco": None}, keep=1)
    assert place == tmp_path / "checkpoints/step-00001000"
    files = {"config.json", "model.safetensors", "training.pt", "SHA256SUMS"}
    assert {p.name for p in place.iterdir()} == files
    loaded = FakeModel.from_pretrained(place)
    assert loaded.config == model.config
    assert torch.equal(loaded.colours, model.colours)
    assert checkpoint.load_state(place) == {"step": 1000, "geco": None}


def test_the_newest_stay(tmp_path):
    for step in (5, 100, 20, 100_000_000):
        save(tmp_path, step, keep=2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000100", "step-100000000"]
    assert checkpoint.latest(tmp_path) == RunFolder(tmp_path).checkpoint(100_000_000)


def test_saving_again_keeps_the_first(tmp_path):
    place = save(tmp_path, 5)
    before = (place / "model.safetensors").read_bytes()
    save(tmp_path, 5)
    assert (place / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("calls", range(7))
def test_death_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch, calls):
    save(tmp_path, 1)
    synced = []

    def die_after_some(descriptor: int) -> None:
        if len(synced) == calls:
            raise KeyboardInterrupt
        synced.append(descriptor)

    monkeypatch.setattr(os, "fsync", die_after_some)
    # Four files and their folder are synced before the rename, the parent after it.
    survives = calls >= 5
    if calls < 6:
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    else:
        save(tmp_path, 2)
    assert checkpoint.latest(tmp_path) == RunFolder(tmp_path).checkpoint(2 if survives else 1)
    clean(tmp_path)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000002"][: 1 + survives]


def test_death_while_removing_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):  # noqa: PT011
        save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert not RunFolder(tmp_path).checkpoint(1).exists()
    assert len([*(tmp_path / "checkpoints").iterdir()]) == 2
    clean(tmp_path)
    assert [*(tmp_path / "checkpoints").iterdir()] == [RunFolder(tmp_path).checkpoint(2)]
    assert checkpoint.latest(tmp_path) == RunFolder(tmp_path).checkpoint(2)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "training.pt"])
def test_incomplete_folders_are_ignored(tmp_path, missing):
    save(tmp_path, 1)
    (save(tmp_path, 2) / missing).unlink()
    assert checkpoint.latest(tmp_path) == RunFolder(tmp_path).checkpoint(1)


def test_no_checkpoint(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "nowhere") is None


class Harmful:
    def __reduce__(self):
        return (os.system, ("touch harmed",))


def test_code_in_a_state_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = save(tmp_path, 1)
    torch.save({"step": Harmful()}, place / "training.pt")
    (place / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=r"training\.pt: damaged, or more than tensors"):
        checkpoint.load_state(place)
    assert not (tmp_path / "harmed").exists()


def test_a_torn_state_is_named(tmp_path):
    place = save(tmp_path, 1)
    torn = (place / "training.pt").read_bytes()[:100]
    (place / "training.pt").write_bytes(torn)
    with pytest.raises(
        ValueError, match=r"training\.pt: damaged or edited: its SHA-256 is not the one in"
    ):
        checkpoint.load_state(place)
    (place / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=r"training\.pt: damaged, or more than tensors"):
        checkpoint.load_state(place)


def test_resolve_finds_what_the_user_means(tmp_path):
    save(tmp_path / "run", 1)
    newest = save(tmp_path / "run", 2)
    FakeModel().save_pretrained(tmp_path / "model")
    (tmp_path / "run/config.yaml").touch()
    assert checkpoint.resolve(tmp_path / "run") == newest
    assert checkpoint.resolve(newest) == newest
    assert checkpoint.resolve(str(tmp_path / "model")) == tmp_path / "model"
    assert run_of(tmp_path / "run").path == tmp_path / "run"
    assert run_of(newest).path == tmp_path / "run"
    assert run_of(tmp_path / "model") is None


def test_resolve_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        checkpoint.resolve(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected a run folder"):
        checkpoint.resolve(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match="no complete checkpoint yet"):
        checkpoint.resolve(tmp_path)
