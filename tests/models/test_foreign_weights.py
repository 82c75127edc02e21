"""What a decoder uses but does not own: its true gradient, or an error; never none in silence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from smoke_testing import loss_of, smoke
from torch import Tensor, nn
from torch.func import functional_call

from emorl.models import MODELS, ObjectCentricModel
from emorl.nn.posterior import require_known

Foreign = Callable[[ObjectCentricModel], Tensor]
REFINING = [name for name in MODELS if MODELS[name].refines]


def scaled(model: ObjectCentricModel) -> Tensor:
    """A factor that a hook brings in."""
    factor = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    model.decoder.output.register_forward_hook(lambda _, __, given: given * (1 + factor))
    return factor


def made_outside(model: ObjectCentricModel) -> Tensor:
    """A weight that a network of elsewhere makes."""
    layer = model.decoder.convolutions[1]
    factor = torch.ones(len(layer.weight), 1, 1, 1, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.detach() * factor
    del layer.weight
    layer.weight = weight
    return factor


def kept_as_an_attribute(model: ObjectCentricModel) -> Tensor:
    """A weight that is no parameter."""
    layer = model.decoder.convolutions[1]
    weight = layer.weight.detach().requires_grad_()
    del layer.weight
    layer.weight = weight
    return weight


def skipped(model: ObjectCentricModel) -> Tensor:
    """A connection from elsewhere in the model past the slots."""
    brought, own = [], next(model.refinement.parameters())
    model.decoder.register_forward_pre_hook(lambda *_: brought.append(own.mean()))
    model.decoder.output.register_forward_hook(lambda _, __, given: given + brought[-1])
    return own


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("foreign", [scaled, made_outside, kept_as_an_attribute, skipped])
@pytest.mark.parametrize("name", REFINING)
def test_what_the_decoder_does_not_own_is_not_left_out(
    name: str, foreign: Foreign, steps: int
) -> None:
    model = smoke(name)
    tensor = foreign(model)
    with pytest.raises(ValueError, match=rf"^decoder: expected .* got a tensor .*{_shape(tensor)}"):
        loss_of(model, refinement_steps=steps)


def _shape(tensor: Tensor) -> str:
    return str([*tensor.shape]).replace("[", r"\[").replace("]", r"\]")


@pytest.mark.parametrize("name", REFINING)
def test_it_may_be_used_where_nothing_is_trained(name: str) -> None:
    model = smoke(name)
    scaled(model)
    images = torch.rand(1, 3, *model.config.image_size, dtype=torch.float64)
    model(images, refinement_steps=1)
    model.score(images, refinement_steps=1)


@pytest.mark.parametrize("name", REFINING)
def test_as_the_decoders_own_it_gets_its_gradient(name: str) -> None:
    model = smoke(name)
    factor = model.decoder.factor = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    model.decoder.output.register_forward_hook(lambda _, __, given: given * (1 + factor))
    loss_of(model, refinement_steps=0).backward()
    found = []
    with torch.no_grad():
        for moved in (0.3 + 1e-5, 0.3 - 1e-5):
            factor.fill_(moved)
            found.append(float(loss_of(model, refinement_steps=0)))
    expected = (found[0] - found[1]) / 2e-5
    assert float(factor.grad) == pytest.approx(expected, rel=1e-5)


class Loss(nn.Module):
    """A model's loss as a module."""

    def __init__(self, model: ObjectCentricModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, steps: int) -> Tensor:
        return loss_of(self.model, refinement_steps=steps)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", REFINING)
def test_weights_that_stand_in_for_a_call_get_their_gradients(
    name: str, trained: bool, computed: bool, steps: int
) -> None:
    """And not those of the weights that are there again in the backward pass."""
    own = Loss(smoke(name))
    own(steps).backward()
    expected = {key: weight.grad for key, weight in own.named_parameters()}
    given = {
        key: weight.detach().clone().requires_grad_() for key, weight in own.named_parameters()
    }
    other = Loss(smoke(name)).requires_grad_(trained)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(2)
    used = {key: 1 * weight if computed else weight for key, weight in given.items()}
    functional_call(other, used, (steps,)).backward()
    assert all(weight.grad is None for weight in other.parameters())
    for key, weight in given.items():
        torch.testing.assert_close(weight.grad, expected[key], msg=key)


def test_a_known_tensor_may_have_a_graph_of_its_own() -> None:
    flat = torch.ones(4, requires_grad=True)
    first, second = flat.split(2)
    known = (first * 2, second * 3)
    require_known(known[0] * known[1], known)
    require_known(first * second, (first, second))
    with pytest.raises(ValueError, match=r"got a tensor \[4\]"):
        require_known(first * second, (first,))
