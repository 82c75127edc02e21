"""Models in folders: every model, in every layout of memory, wherever it lies."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from emorl.models import MODELS, ObjectCentricModel, find_model, load_model
from emorl.runs import RunFolder, checkpoint
from emorl.runs.integrity import DamagedError
from emorl.training.config_file import find_config, load_config


def small(name: str) -> ObjectCentricModel:
    return MODELS[name](load_config(find_config("smoke", name), name).network)


def same(one: ObjectCentricModel, other: ObjectCentricModel) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_saved_in_any_layout_of_memory(tmp_path, name):
    model = small(name)
    model.save_pretrained(tmp_path / "plain")
    model.to(memory_format=torch.channels_last)
    model.save_pretrained(tmp_path / "last")
    for file in ("config.json", "model.safetensors", "SHA256SUMS"):
        plain, last = (tmp_path / folder / file for folder in ("plain", "last"))
        assert plain.read_bytes() == last.read_bytes()
    assert same(load_model(tmp_path / "last"), model)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text("model: monet\n")
    for step in (1, 2):
        torch.manual_seed(step)
        checkpoint.save(run.checkpoint(step), small("monet"), {"step": step}, keep=2)
    return run


def test_a_model_is_found_wherever_evaluate_finds_it(run, tmp_path):
    newest = run.checkpoint(2)
    model = load_model(newest)
    model.save_pretrained(tmp_path / "model")
    assert not same(load_model(run.checkpoint(1)), model)
    for path in (run.path, str(run.path), newest, tmp_path / "model"):
        assert same(load_model(path), model)
    assert find_model(run.path)[0] == newest


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("file.pth", r"file\.pth: not a folder"),
        ("empty", "expected a run folder"),
    ],
)
def test_what_holds_no_model_is_refused(tmp_path, path, message):
    (tmp_path / "file.pth").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "expected a path, got null"),
        (3, "expected a path, got 3"),
        (b"x", "expected a path, got b'x'"),
        ("tetrominoes-laptop\n", "'tetrominoes-laptop\\n': no such folder"),
        (5000 * "a", "aaa...aaa"),
    ],
    ids=["nothing", "a number", "bytes", "a line break", "too long"],
)
@pytest.mark.parametrize("load", [load_model, MODELS["monet"].from_pretrained])
def test_what_is_no_path_is_one_line(load, path, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_there_is_not_called_damaged(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder") as raised:
        MODELS["monet"].from_pretrained(tmp_path / "nowhere")
    assert not isinstance(raised.value, DamagedError)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_checkpoint_that_is_removed_meanwhile_is_followed_by_the_next(run, monkeypatch, file):
    """As by a training that keeps only the newest, between two files that are read."""
    plain, later = Path.read_bytes, run.checkpoint(3)

    def read(path: Path) -> bytes:
        if path == run.checkpoint(2) / file:
            torch.manual_seed(3)
            checkpoint.save(later, small("monet"), {"step": 3}, keep=1)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    folder, model = find_model(run.path)
    monkeypatch.undo()
    assert folder == later
    assert same(model, load_model(later))


def test_a_checkpoint_that_was_named_is_not_replaced_by_another(run, monkeypatch):
    plain, named = Path.read_bytes, run.checkpoint(2)

    def read(path: Path) -> bytes:
        if path.parent == named:
            shutil.rmtree(named, ignore_errors=True)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(ValueError, match="no such folder"):
        load_model(named)


def test_a_damaged_newest_checkpoint_is_named(run):
    """A measurement of another one would be taken for one of the newest."""
    path = run.checkpoint(2) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step-00000002/model\.safetensors: damaged or edited"):
        load_model(run.path)


def test_a_model_replaces_no_checkpoint(run):
    place = run.checkpoint(2)
    before = (place / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="expected a folder for a model alone, got a run's"):
        small("monet").save_pretrained(place)
    assert (place / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 100_000])
def test_a_description_that_is_none(run, text):
    place = run.checkpoint(2)
    (place / "SHA256SUMS").unlink()
    (place / "config.json").write_text(text)
    with pytest.raises(ValueError, match="damaged, or another version's"):
        load_model(place)


def test_weights_of_another_kind_of_number(run):
    from safetensors.torch import load_file, save_file

    place = run.checkpoint(2)
    weights = load_file(place / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name].to(torch.int32)
    save_file(weights, place / "model.safetensors")
    (place / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match=rf"{name}: expected torch\.float32, got torch\.int32"):
        load_model(place)
