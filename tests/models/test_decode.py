"""Slots decoded by themselves, and the means of posteriors, for every model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from emorl.data import open_dataset
from emorl.evaluation import ImageNoise
from emorl.models import MODELS, Decomposition, ObjectCentricModel
from emorl.nn.posterior import Gaussian
from emorl.training.config_file import find_config, load_config

IMAGES = range(2)
DRAWN_POSTERIORS = ("efficient_morl", "iodine", "monet")


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> ObjectCentricModel:
    torch.manual_seed(0)
    kind = MODELS[request.param]
    return kind(load_config(find_config("smoke", request.param)).network).double().eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return open_dataset("tetrominoes").read_images(IMAGES)


def decomposed(model: ObjectCentricModel, images: Tensor, seed: int, drawn: int | None):
    return model(images, generator=ImageNoise(IMAGES, seed=seed, drawn=drawn))


@torch.no_grad()
def test_decoded_slots_compose_the_decomposition(model, images):
    expected: Decomposition = decomposed(model, images, 0, None)
    decoded = model.decode(expected.slots)
    assert decoded.shape == (2, expected.slots.shape[1], 4, 35, 35)
    found = model.compose(decoded, expected.slots)
    torch.testing.assert_close(found.components, expected.components, rtol=1e-9, atol=1e-12)
    if model.name != "monet":  # whose masks of images come from its attention network
        torch.testing.assert_close(found.masks, expected.masks, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            found.reconstruction, expected.reconstruction, rtol=1e-9, atol=1e-12
        )
    assert found.masks.sum(1).allclose(torch.ones(2, 1, 35, 35).double())
    one = model.decode(expected.slots[:, :1])
    torch.testing.assert_close(one, decoded[:, :1], rtol=1e-9, atol=1e-12)


def test_slots_are_the_means_of_their_posteriors(model, images, monkeypatch):
    """As long as noise is drawn only where slots start; it then still parts them."""
    means = []
    sample = Gaussian.sample

    def recorded(self: Gaussian, generator: torch.Generator | None) -> Tensor:
        means.append(self.mean.detach())
        return sample(self, generator)

    monkeypatch.setattr(Gaussian, "sample", recorded)
    slots = decomposed(model, images, 0, model.initial_draws).slots
    if model.name in DRAWN_POSTERIORS:
        assert torch.equal(slots, means[-1].view_as(slots))
        assert not torch.equal(decomposed(model, images, 0, None).slots, slots)
    else:
        assert torch.equal(decomposed(model, images, 0, None).slots, slots)
    if model.initial_draws:
        assert (slots[:, 0] != slots[:, 1]).any()
        assert not torch.equal(decomposed(model, images, 1, model.initial_draws).slots, slots)
    else:
        assert torch.equal(decomposed(model, images, 1, 0).slots, slots)
