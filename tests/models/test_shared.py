"""What no slot changes is computed once a training step, however often slots are decoded."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from iodine_testing import DEEPMIND
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from emorl.models import MODELS, ObjectCentricModel
from emorl.nn.networks import SpatialBroadcastDecoder, shared_by_slots
from emorl.training.config_file import find_config, load_config

CHUNKS = {"refinement_steps": 2, "score_chunk": 3}  # slots, of one image
CASES = {
    "efficient_morl": ("efficient_morl", {"refinement_steps": 2}),
    "efficient_morl, no padding": ("efficient_morl", {**CHUNKS, "decoder": "iodine"}),
    "efficient_morl, padding": ("efficient_morl", {**CHUNKS, "decoder": "small"}),
    "iodine": ("iodine", CHUNKS),
    "iodine, kept": ("iodine", {**CHUNKS, "keep_activations": True}),
    "iodine, wide padding": ("iodine", {**DEEPMIND, **CHUNKS, "decoder_kernel": 5}),
}
case = pytest.mark.parametrize(("name", "changes"), CASES.values(), ids=CASES)


def tiny(name: str, changes: dict[str, Any]) -> ObjectCentricModel:
    """A model in float64 whose weights are not all close to zero."""
    config = load_config(find_config("smoke", name)).network
    torch.manual_seed(0)
    config = replace(config, image_size=(9, 8), **changes)
    model = MODELS[name](config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def loss(model: ObjectCentricModel) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, *model.config.image_size, generator=noise, dtype=torch.float64)
    return model.objective(images, generator=noise).loss


def gradients(model: ObjectCentricModel) -> dict[str, Tensor]:
    model.zero_grad()
    loss(model).backward()
    return {n: p.grad for n, p in model.decoder.named_parameters() if p.grad is not None}


class Convolutions(TorchDispatchMode):
    """Counts the convolutions with a weight, or a slice of it, forward and backward."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.memory = weight.untyped_storage().data_ptr()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [x for x in args if isinstance(x, Tensor)]
        if "convolution" in name and self.memory in [
            x.untyped_storage().data_ptr() for x in tensors
        ]:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@case
def test_positions_are_convolved_once_a_step(name: str, changes: dict[str, Any]) -> None:
    model = tiny(name, changes)
    with Convolutions(model.decoder.convolutions[0].weight) as seen:
        gradients(model)
    assert seen.counts == {"convolution": 1, "convolution_backward": 1}


@case
def test_the_position_map_is_made_once_a_step(name: str, changes: dict[str, Any]) -> None:
    """Also where the first layer has a hook, so that it is called for each score."""
    model, calls = tiny(name, changes), Counter[str]()
    first = model.decoder.convolutions[0]
    first.register_forward_hook(lambda *_: calls.update(["first"]))
    model.decoder.position.register_forward_hook(lambda *_: calls.update(["position"]))
    expected = loss(model)
    scores = 3 * 2 if "score_chunk" in changes else 3
    assert calls == {"first": scores, "position": 1}
    first._forward_hooks.clear()
    torch.testing.assert_close(loss(model), expected, rtol=1e-11, atol=0)


class Unknown(nn.Module):
    """A decoder in another module, which knows of nothing to be shared."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.convolutions, self.output = decoder.convolutions, decoder.output
        self.position, self._decode = decoder.position, [decoder]  # whose parameters these are

    def forward(self, slots: Tensor, size: tuple[int, int]) -> Tensor:
        decoded: Tensor = self._decode[0](slots, size)
        return decoded


@case
def test_a_decoder_that_shares_nothing_has_the_same_gradients(
    name: str, changes: dict[str, Any]
) -> None:
    model = tiny(name, changes)
    shared = gradients(model)
    model.decoder = Unknown(model.decoder)
    assert shared_by_slots(model.decoder, model.config.image_size) == ()
    alone = gradients(model)
    assert alone.keys() == shared.keys()
    for key, gradient in alone.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(shared[key], gradient, rtol=0, atol=1e-9 * scale, msg=key)


@case
def test_parts_of_a_decoder_can_be_frozen(name: str, changes: dict[str, Any]) -> None:
    model = tiny(name, changes)
    expected = gradients(model)
    for trained in (["position.project.weight"], ["convolutions.0.bias"], []):
        for key, parameter in model.decoder.named_parameters():
            parameter.requires_grad_(key in trained)
            parameter.grad = None
        found = gradients(model)
        assert [*found] == [key for key in trained if key in expected]
        for key, gradient in found.items():
            torch.testing.assert_close(gradient, expected[key], rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_what_is_shared_has_the_dtype_of_the_weights_under_autocast(padding: int) -> None:
    """So that gradients of many scores are not added up in bfloat16."""
    model = tiny("iodine", {**DEEPMIND, "decoder_padding": padding, "decoder_kernel": 5})
    decoder: SpatialBroadcastDecoder = model.decoder.float()
    with torch.autocast("cpu", torch.bfloat16):
        shared = decoder.shared((8, 8))
        decoded = decoder(torch.randn(2, decoder.dim), (8, 8), *shared)
    assert {x.dtype for x in shared} == {torch.float32}
    assert decoded.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["efficient_morl", "iodine", "monet", "slot_attention"])
def test_slots_beyond_all_memory_are_refused(name: str) -> None:
    model = MODELS[name](load_config(find_config("smoke", name), name).network)
    with pytest.raises(ValueError, match="1000000000000 slots of 35x35 pixels would take"):
        model.objective(torch.rand(1, 3, 35, 35), num_slots=10**12)
