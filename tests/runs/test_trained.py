"""Trained models by name: found, refused, packaged, and as they were written."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from emorl.cli import main
from emorl.models import MODELS, EfficientMORL, SlotAttentionModel, find_model, load_model
from emorl.runs import trained
from emorl.runs.folder import run_of
from emorl.runs.integrity import write_checksums
from emorl.runs.trained import hint, located, short_name, trained_names
from emorl.training.config_file import find_config, load_config, save_config
from emorl.training.options import DEFAULT_MODEL

ROOT = Path(trained.__file__).resolve().parents[2]
MOST = 2**20  # bytes of a model's weights


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of hardly any size, one name."""
    place = tmp_path_factory.mktemp("trained")
    for name in ("efficient_morl", "slot_attention"):
        config, folder = load_config(find_config("smoke", name), name), place / name / "tiny"
        MODELS[name](config.network).save_pretrained(folder)
        save_config(config, folder / "config.yaml")
        write_checksums(folder)
    return place


@pytest.fixture
def place(stand_ins, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(trained, "TRAINED", stand_ins)
    monkeypatch.chdir(tmp_path)
    return stand_ins


def test_a_name_is_a_folder_and_what_is_there_is_no_name(place, tmp_path):
    assert trained_names() == ["efficient_morl/tiny", "slot_attention/tiny"]
    assert trained.FIRST == DEFAULT_MODEL
    assert located("tiny") == located("efficient_morl/tiny") == place / "efficient_morl/tiny"
    assert located("tiny", "slot_attention") == place / "slot_attention/tiny"
    for other in ("tiny/", "slot_attention/tiny"):
        assert located(other).is_dir()
    for other in ("efficient_morl", "monet/tiny", "../efficient_morl/tiny", "TINY", "."):
        assert located(other) == Path(other)
    (tmp_path / "tiny").mkdir()
    assert located("tiny") == Path("tiny")


def test_models_are_loaded_by_name(place):
    for name in ("tiny", "efficient_morl/tiny"):
        assert find_model(name)[0] == place / "efficient_morl/tiny"
        assert isinstance(load_model(name), EfficientMORL)
        assert isinstance(EfficientMORL.from_pretrained(name), EfficientMORL)
    for name in ("tiny", "slot_attention/tiny"):  # without a model: the class's own
        assert isinstance(SlotAttentionModel.from_pretrained(name), SlotAttentionModel)
    with pytest.raises(ValueError, match="not a folder of the model slot_attention"):
        SlotAttentionModel.from_pretrained("efficient_morl/tiny")


@pytest.mark.parametrize("load", [load_model, EfficientMORL.from_pretrained])
def test_an_unknown_name_is_told_the_ones_there_are(place, load, tmp_path):
    known = "; trained models that come along: efficient_morl/tiny, slot_attention/tiny$"
    for name in ("tinny", "efficient_morl/tinny"):
        with pytest.raises(ValueError, match=f"^{name}: .*{known}"):
            load(name)
    for path in (tmp_path / "tinny", tmp_path, Path("a/b/c")):
        assert hint(path) == ""


def test_a_name_is_evaluated_on_the_data_it_was_trained_on(place, tmp_path, capsys):
    before = sorted(place.rglob("*"))
    options = "--images 2 --disentanglement no --json result.json"
    assert main(f"evaluate tiny {options}".split()) == 0
    assert "tetrominoes (test): 2 images" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["checkpoint"] == str(place / "efficient_morl/tiny")
    assert sorted(place.rglob("*")) == before  # it is no run of the user's
    assert main(["evaluate", "tinny"]) == 2
    assert "models that come along: efficient_morl/tiny" in capsys.readouterr().err
    assert main(["traverse", "tiny"]) == 2
    assert "--out: needed" in capsys.readouterr().err


def test_a_damaged_one_is_refused(place, tmp_path, monkeypatch):
    copy = shutil.copytree(place, tmp_path / "copy")
    weights = copy / "efficient_morl/tiny/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(trained, "TRAINED", copy)
    with pytest.raises(ValueError, match="damaged or edited"):
        load_model("tiny")


def test_short_names():
    name = "slot_attention/tetrominoes-laptop"
    assert short_name("tetrominoes-laptop") == "efficient_morl/tetrominoes-laptop"
    assert short_name(trained.TRAINED / name) == name
    assert short_name("runs/mine") == "runs/mine"


@pytest.mark.parametrize("name", trained_names())
def test_what_comes_along_is_whole_and_small(name):
    folder = located(name)
    run = run_of(name)
    assert run is not None
    config, model = load_config(run.config), load_model(name)
    assert (config.model, config.network) == (model.name, model.config)
    assert name.partition("/")[0] == model.name
    assert (folder / "model.safetensors").stat().st_size <= MOST
    listed = (folder / "SHA256SUMS").read_text().split()[1::2]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*listed, "SHA256SUMS"])


def test_what_comes_along_is_packaged():
    assert "efficient_morl/tetrominoes-laptop" in trained_names()
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "emorl"
    packaged = {path for glob in tools["package-data"]["emorl"] for path in package.glob(glob)}
    files = {path for path in trained.TRAINED.rglob("*") if path.is_file()}
    assert files <= packaged
