"""The benchmark's driver of the released code, on a checkout that is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from emorl.bench import released
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


def test_each_checkout_has_its_own_code_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("sacred", "lib", "lib.model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    config, found = EfficientMORLConfig(image_size=(35, 35), slot_dim=32), []
    for folder, extra in (("one", {"use_geco": True}), ("two", {})):
        (tmp_path / folder / "lib").mkdir(parents=True)
        code = MODEL.replace("self.part = ", f"self.checkout = {folder!r}\n        self.part = ")
        (tmp_path / folder / "lib/model.py").write_text(code)
        net = released.net_of(config, 3) | extra
        found.append(released.build(tmp_path / folder, net, batch=8))
    assert [(m.checkout, m.use_geco) for m in found] == [("one", True), ("two", False)]


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
