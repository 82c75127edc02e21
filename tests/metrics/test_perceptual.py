"""LPIPS, with a stub in place of the network, whose weights are not there."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from emorl.metrics.perceptual import PerceptualDistance, require_weights

URL = "https://weights.example/alexnet-123.pth"


class Stub(nn.Module):
    """As torchmetrics' class: of one pair at a time, of a shape without axes."""

    def __init__(self, net_type: str, normalize: bool) -> None:
        super().__init__()
        assert (net_type, normalize) == ("alex", True)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        assert first.shape == second.shape == (1, 3, 4, 4)
        assert first.dtype == torch.float32
        assert min(first.min(), second.min()) >= 0
        assert max(first.max(), second.max()) <= 1
        return (first - second).abs().mean()


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """What is used of torchmetrics and torchvision, and an empty cache."""
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=URL))
    for name in ("torchmetrics", "torchmetrics.image", "torchmetrics.image.lpip", "torchvision"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchvision"].models = SimpleNamespace(AlexNet_Weights=weights)
    sys.modules["torchmetrics.image.lpip"].LearnedPerceptualImagePatchSimilarity = Stub
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints" / "alexnet-123.pth"


def test_weights_that_are_missing_are_named_and_not_downloaded(packages, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: pytest.fail("a download"))
    with pytest.raises(ValueError, match="is not there, and is not downloaded unasked: get") as got:
        PerceptualDistance()
    assert str(packages) in str(got.value)
    assert URL in str(got.value)


def test_the_distance_of_each_pair(packages):
    packages.parent.mkdir()
    packages.touch()
    first, second = torch.rand(3, 3, 4, 4).double(), torch.rand(3, 3, 4, 4).double()
    second[2] = first[2]
    first[0, 0, 0, 0] = 1.0005  # rounding of half precision, cut off
    got = PerceptualDistance()(first, second)
    expected = (first.clamp(max=1) - second).abs().flatten(1).mean(1)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="expected reconstruction in"):
        PerceptualDistance()(first, 255 * second)


def test_networks_have_names(packages):
    with pytest.raises(ValueError, match="expected one of alex, vgg, squeeze, got 'resnet'"):
        require_weights("resnet")


def test_without_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'emorl\[lpips\]'"):
        PerceptualDistance()
