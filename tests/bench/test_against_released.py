"""The benchmark's driver of the released code, on a checkout that is none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from emorl.bench import released
from emorl.bench.against_released import describe, main
from emorl.bench.steps import Case
from emorl.compat.official import config_from_net
from emorl.models import EfficientMORLConfig

MODEL = """
from sacred import Ingredient
from torch import nn

net = Ingredient("Net")

@net.config
def cfg():
    K = 99

class Part(nn.Module):
    @net.capture
    def __init__(self, z_size, batch_size):
        super().__init__()
        self.sizes = z_size, batch_size

class EfficientMORL(nn.Module):
    @net.capture
    def __init__(self, K, input_size, batch_size, use_geco=False):
        super().__init__()
        self.slots, self.size, self.use_geco = K, input_size, use_geco
        self.part = Part(batch_size=batch_size)
"""


def test_a_configuration_reaches_the_functions_that_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("sacred", "lib", "lib.model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/model.py").write_text(MODEL)
    config = EfficientMORLConfig(image_size=(35, 35), slot_dim=32)
    model = released.build(tmp_path, released.net_of(config, 3), batch=8)
    assert (model.slots, model.size, model.use_geco) == (4, [3, 35, 35], False)
    assert model.part.sizes == (32, 8)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a checkout of EfficientMORL"):
        released.build(tmp_path, {}, batch=1)


def test_net_describes_the_configuration() -> None:
    config = EfficientMORLConfig(
        image_size=(32, 48), likelihood="mixture", prior="bottom_up", decoder="big", sigma=0.3
    )
    assert config_from_net(released.net_of(config, 3)) == config


def test_first_derivatives_are_enough_for_a_detached_gradient() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    with released.first_derivatives():
        (gradient,) = torch.autograd.grad(x**3, x, create_graph=True, retain_graph=False)
        assert not gradient.requires_grad
    assert torch.autograd.grad(x**3, x, create_graph=True)[0].requires_grad


def test_table() -> None:
    numbers = {
        name: {
            "seconds": {"median": s, "p20": s, "p80": s},
            "images_per_second": 2 / s,
            "peak_bytes_above_start": b,
        }
        for name, s, b in [("emorl", 0.5, 2**20), ("released", 2.0, 3 * 2**20)]
    }
    result = {"case": str(Case.parse("clevr6:2:3")), "part": "train", "variants": numbers}
    lines = describe(result).splitlines()
    assert lines[0] == "clevr6, batch 2, I=3, train"
    assert " ".join(lines[2].split()) == "as released 2.000 s (2.000 to 2.000) 4.00x 3 MiB 3.00x"


def test_one_line_tells_that_every_process_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As all do where the checkout's model is none."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/model.py").write_text("")
    out = tmp_path / "out.json"
    options = ["--official", str(tmp_path), "--cases", "tetrominoes:1:0", "--out", str(out)]
    options.append("--allow-reference")  # of no interest here
    monkeypatch.setattr(sys, "argv", ["against_released", *options])
    with pytest.raises(SystemExit, match="1"):
        main()
    printed = capsys.readouterr()
    assert printed.out == "tetrominoes, batch 1, I=0, train: every process died\n"
    assert "emorl: its process died" in printed.err
    assert json.loads(out.read_text())["results"][0]["variants"] == {}
