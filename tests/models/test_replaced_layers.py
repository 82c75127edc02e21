"""Layers that users replace, watch or parametrize: models compute with them, and leave them be."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from smoke_testing import loss_of, smoke
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from emorl.models import MODELS
from emorl.nn import BroadcastSpec, SpatialBroadcastDecoder


def biased(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers with a bias that PyTorch lets go without."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
            yield name, layer


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in MODELS), ("efficient_morl", {"decoder": "small"})],
)
def test_a_layer_without_a_bias_is_one_whose_bias_is_zero(name: str, options: dict) -> None:
    model = smoke(name, **options)
    with torch.no_grad():
        for _, layer in biased(model):
            layer.bias.zero_()
    expected = loss_of(model)
    without = copy.deepcopy(model)
    for path, layer in [*biased(without)]:
        layer.bias = None
        assert without.get_submodule(path).bias is None
    torch.testing.assert_close(loss_of(without), expected)
    loss_of(without).backward()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in MODELS),
        ("efficient_morl", {"decoder": "big", "image_size": (16, 16)}),
    ],
)
def test_what_a_hook_keeps_is_not_overwritten(name: str, options: dict) -> None:
    """And a hook of all modules sees every layer."""
    model, kept = smoke(name, **options), []
    names = {layer: path for path, layer in model.named_modules()}

    def keep(layer: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and layer in names:
            kept.append((names[layer], output, output.detach().clone()))

    handle = register_module_forward_hook(keep)
    try:
        loss_of(model)
    finally:
        handle.remove()
    assert not [path for path, output, as_given in kept if not torch.equal(output, as_given)]
    layers = {path for path, layer in model.named_modules() if isinstance(layer, _GIVE_A_TENSOR)}
    assert layers <= {path for path, _, _ in kept}


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in MODELS), ("iodine", {"inputs": "deepmind"})]
)
def test_hooks_of_every_part_are_called(name: str, options: dict) -> None:
    """Also of those that hold others; lists are no layers, and have no call."""
    model, called = smoke(name, **options), set()
    parts = {path for path, layer in model.named_modules() if not isinstance(layer, nn.ModuleList)}
    for path in parts - {""}:
        layer = model.get_submodule(path)
        layer.register_forward_hook(lambda *_, path=path: called.add(path) and None)
    loss_of(model)
    assert parts - called == {""}  # the model itself, whose objective is no call


_GIVE_A_TENSOR = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm, nn.GroupNorm)


class Changing(nn.Module):
    """A parametrization that gives other weights every time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("times", torch.zeros((), dtype=torch.float64))

    def forward(self, weight: Tensor) -> Tensor:
        self.times += 1
        return weight * self.times


@pytest.mark.parametrize("name", ["efficient_morl", "iodine", "monet"])
def test_a_weight_that_changes_when_it_is_read_is_read_once(name: str) -> None:
    model = smoke(name)
    decoder = model.component.decoder if name == "monet" else model.decoder
    slots = torch.randn(3, decoder.dim, dtype=torch.float64)
    expected = decoder(slots)
    parametrize.register_parametrization(decoder.convolutions[0], "weight", Changing())
    decoder.convolutions[0].parametrizations.weight[0].times.zero_()
    torch.testing.assert_close(decoder(slots), expected)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_a_decoder_that_runs_again_has_the_weights_of_the_first_time(norm: Callable) -> None:
    """Spectral norm's estimate goes on with every call."""
    found = []
    for keep in (False, True):
        model = smoke("iodine", keep_activations=keep)
        norm(model.decoder.convolutions[1])
        loss_of(model).backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("coordinates", [False, True])
def test_every_small_size_is_decoded_as_by_the_layers_themselves(
    kernel: int, coordinates: bool
) -> None:
    torch.manual_seed(0)
    compared = 0
    for padding in range(kernel + 1):
        spec = BroadcastSpec(1, kernel, padding, 1, 4, "elu", coordinates=coordinates)
        for size in [(a, b) for a in range(1, 8) for b in range(1, 8)]:
            if min(size) + spec.margin < max(1, kernel - 2 * padding):
                continue
            decoder = SpatialBroadcastDecoder(6, spec, size).double()
            slots = torch.randn(2, 6, dtype=torch.float64)
            fast = decoder(slots)
            decoder.convolutions[0].register_forward_hook(lambda *_: None)  # so it is called
            torch.testing.assert_close(fast, decoder(slots))
            compared += 1
    assert compared > 70
