"""The decoder and the likelihood as modules of any model: values, derivatives, and where used."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rounding_testing import assert_rounded, rounding_of
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import functional_call, grad, vmap

import emorl.nn.likelihoods
import emorl.nn.networks
from emorl.nn import BroadcastSpec, MixtureLikelihood, SpatialBroadcastDecoder

B, K, D, SIZE = 2, 3, 4, (7, 6)
SPEC = BroadcastSpec(layers=2, kernel=3, padding=1, final_padding=1, channels=5, activation="elu")
KINDS = ("gaussian", "mixture", "mixture_joint")


class Model(nn.Module):
    """A decoder and a likelihood: the negative log-likelihood, [B], of slots [B, K, D]."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        backends = {"backend": options.get("backend", "auto")}
        backends["convolution_backend"] = backends["backend"]
        self.decoder = SpatialBroadcastDecoder(D, SPEC, SIZE, **backends)
        self.likelihood = MixtureLikelihood(**{"sigma": 0.3, **options})
        self.register_buffer("images", torch.rand(B, 3, *SIZE))

    def forward(self, slots: Tensor) -> Tensor:
        """Score the same images."""
        decoded = self.decoder(slots.flatten(0, 1)).unflatten(0, slots.shape[:2])
        scores: Tensor = self.likelihood(self.images[: len(slots)], decoded)
        return scores


def model(**options: Any) -> Model:
    torch.manual_seed(0)
    return Model(**options)


def slots(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, K, D, generator=torch.Generator().manual_seed(1), dtype=dtype)


def values(m: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
    return [m(x)]


def with_gradients(m: nn.Module, x: Tensor) -> list[Tensor]:
    y = m(x)
    return [y, *torch.autograd.grad(y.sum(), [*m.parameters()])]


@pytest.mark.parametrize("module", [emorl.nn.likelihoods, emorl.nn.networks])
def test_the_examples_of_the_docstrings(module: Any) -> None:
    found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted >= 3
    assert found.failed == 0


@pytest.mark.parametrize("density", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_is_that_of_torch_distributions(
    kind: Any, activation: Any, density: bool
) -> None:
    images, decoded = torch.rand(B, 3, *SIZE).double(), torch.randn(B, K, 4, *SIZE).double()
    sigma = 0.3 if kind == "gaussian" else torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
    likelihood = MixtureLikelihood(
        sigma=sigma, kind=kind, rgb_activation=activation, density=density
    )
    colours, weights = decoded[:, :, :3], decoded[:, :, 3:].softmax(1)
    colours = colours.sigmoid() if activation == "sigmoid" else colours
    if kind == "gaussian":
        scores = Normal((weights * colours).sum(1), sigma).log_prob(images)
    else:
        each = Normal(colours.permute(0, 3, 4, 2, 1), sigma)  # [B, H, W, C, K]
        if kind == "mixture_joint":
            each = Normal(colours.permute(0, 3, 4, 1, 2), sigma[:, None])
            mixed = MixtureSameFamily(
                Categorical(weights[:, :, 0].permute(0, 2, 3, 1)), Independent(each, 1)
            )
        else:
            shares = weights[:, :, 0].permute(0, 2, 3, 1)[:, :, :, None].expand(each.mean.shape)
            mixed = MixtureSameFamily(Categorical(shares), each)
        scores = mixed.log_prob(images.permute(0, 2, 3, 1))
    expected = -scores.flatten(1).sum(1)
    if not density:
        expected = expected - 0.5 * math.log(2 * math.pi) * 3 * 7 * 6
    unit, terms = torch.finfo(torch.float64).eps, scores.abs().sum().item() + 3 * 7 * 6
    assert (likelihood(images, decoded) - expected).abs().max() <= 8 * unit * terms


def test_the_mixture_of_a_likelihood() -> None:
    decoded = torch.randn(B, K, 4, *SIZE)
    found = MixtureLikelihood(sigma=0.3).mixture(decoded)
    torch.testing.assert_close(found.masks.sum(1), torch.ones(B, 1, *SIZE))
    assert found.masks.equal(decoded[:, :, 3:].softmax(1))
    assert found.colours.equal(decoded[:, :, :3].sigmoid())
    assert found.reconstruction.equal((found.masks * found.colours).sum(1))
    unbounded = MixtureLikelihood(sigma=0.3, rgb_activation="none").mixture(decoded.bfloat16())
    assert unbounded.colours.equal(decoded.bfloat16().float()[:, :, :3])


def test_sigma_of_each_slot_is_a_buffer() -> None:
    sigma = torch.tensor([0.1, 0.2, 0.3])
    likelihood = MixtureLikelihood(sigma=sigma)
    assert likelihood.state_dict().keys() == {"sigma"}
    assert likelihood.double().sigma.dtype == torch.float64
    assert not MixtureLikelihood(sigma=0.1).state_dict()
    images, decoded = torch.rand(B, 3, *SIZE), torch.randn(B, K, 4, *SIZE)
    one = MixtureLikelihood(sigma=0.1)
    one.sigma = 0.2
    assert one(images, decoded).equal(MixtureLikelihood(sigma=0.2)(images, decoded))
    with pytest.raises(ValueError, match='a number for kind "gaussian", got a tensor'):
        MixtureLikelihood(sigma=sigma, kind="gaussian")(images, decoded)
    with pytest.raises(ValueError, match="sigma: expected a number > 0, got -1"):
        MixtureLikelihood(sigma=-1)(images, decoded)
    with pytest.raises(TypeError, match="positional"):
        MixtureLikelihood(0.1)


def test_a_decoder_of_other_channels_and_sizes() -> None:
    decoder = SpatialBroadcastDecoder(D, SPEC, SIZE, out_channels=9)
    assert decoder(slots()[0]).shape == (K, 9, *SIZE)
    assert decoder(slots()[0]).equal(decoder(slots()[0], SIZE))
    assert decoder(slots()[0], (5, 8)).shape == (K, 9, 5, 8)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: Any, backend: Any) -> None:
    m = model(kind=kind, backend=backend).double()
    x = slots(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(m, x)
    weight = m.decoder.convolutions[1].weight
    direction = torch.randn_like(weight)

    def moved(step: Tensor) -> Tensor:
        weights = {"decoder.convolutions.1.weight": weight.detach() + step * direction}
        scores: Tensor = functional_call(m, weights, (x.detach(),))
        return scores

    assert torch.autograd.gradcheck(moved, torch.zeros((), dtype=x.dtype, requires_grad=True))


def test_one_graph_and_an_export() -> None:
    m, x, plain = model(), slots(), model(backend="reference")
    exported = torch.export.export(m.eval(), (x,)).module()
    assert_rounded(values(exported, x), values(m, x), rounding_of(values, plain, x))
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    rounding = rounding_of(with_gradients, plain, x)
    assert_rounded(with_gradients(compiled, x), with_gradients(m, x), rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_near_and_finite(dtype: torch.dtype) -> None:
    m, x, plain = model(), slots(), model(backend="reference")
    with torch.autocast("cpu", dtype):
        found = m(x)
        rounding = rounding_of(values, plain, x, torch.finfo(dtype).eps)
    assert found.dtype == torch.float32
    assert_rounded([found], values(m, x), rounding)
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_sample(kind: Any) -> None:
    m, x = model(kind=kind).double(), slots(torch.float64)
    plain = model(kind=kind, backend="reference").double()
    weights = {key: p.detach() for key, p in m.named_parameters()}

    def loss(weights: dict[str, Tensor], sample: Tensor, image: Tensor) -> Tensor:
        state = {**weights, "images": image[None]}
        scores: Tensor = functional_call(m, state, (sample[None],))
        return scores.sum()

    found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, m.images)
    for i, sample in enumerate(x):
        m.images = plain.images = model().images.double()[i : i + 1]
        _, *expected = with_gradients(m, sample[None])
        rounding = rounding_of(with_gradients, plain, sample[None])
        assert_rounded([found[key][i] for key in weights], expected, rounding[1:])
