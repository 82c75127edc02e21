"""Noise, and whole objectives, of a batch that is shared out."""

from __future__ import annotations

import pytest
import torch
from test_efficient_morl import gradients, tiny

from emorl.models import MODELS
from emorl.nn import BatchShare, standard_normal
from emorl.training import GECO
from emorl.training.config_file import find_config, load_config


def share(index: int, shares: int, seed: int = 5) -> BatchShare:
    generator = BatchShare("cpu")
    generator.manual_seed(seed)
    generator.index, generator.shares = index, shares
    return generator


@pytest.mark.parametrize("shape", [(12,), (12, 5), (12, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shares_together_draw_what_one_generator_draws(shape, dtype):
    whole = torch.empty(shape, dtype=dtype)
    expected = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(5))
    assert torch.equal(standard_normal(whole, share(0, 1)), expected)
    for shares in (2, 3, 4):
        parts = whole.chunk(shares)
        drawn = [standard_normal(part, share(i, shares)) for i, part in enumerate(parts)]
        assert torch.equal(torch.cat(drawn), expected)


def test_the_next_draw_is_the_next_in_every_share():
    like = torch.empty(4, 3)
    whole, second = share(0, 1), share(1, 2)
    for _ in range(3):
        expected = standard_normal(like, whole)[2:]
        assert torch.equal(standard_normal(like[:2], second), expected)


def test_without_a_generator_the_global_noise_is_drawn():
    torch.manual_seed(1)
    drawn = standard_normal(torch.empty(6, 2), None)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.randn(6, 2))


@pytest.mark.parametrize(
    "changes",
    [{}, {"refinement_steps": 0}, {"prior": "bottom_up"}, {"stochastic_layers": 0}],
    ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()) or "default",
)
@pytest.mark.parametrize("constrained", [False, True], ids=["elbo", "geco"])
def test_shares_have_the_loss_and_the_gradients_of_the_batch(changes, constrained):
    """Refinement has to see gradients of the whole batch's mean: its layer norms have an eps."""
    geco = GECO(-1.3, moving_average=-70.0, raw_multiplier=0.8) if constrained else None
    assert_shares_are_the_batch(tiny(**changes), geco)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "efficient_morl"])
def test_shares_are_the_batch_for_every_model(name):
    torch.manual_seed(0)
    model = MODELS[name](load_config(find_config("smoke", name)).network)
    assert_shares_are_the_batch(model.double(), None)


def assert_shares_are_the_batch(model, geco):
    images = torch.rand(6, 3, *model.config.image_size, dtype=torch.float64)
    whole = model.objective(images, geco=geco, generator=share(0, 1))
    parts = [
        model.objective(part, geco=geco, generator=share(i, 3))
        for i, part in enumerate(images.chunk(3))
    ]
    for name, term in whole.terms.items():
        together = torch.cat([part.terms[name] for part in parts])
        torch.testing.assert_close(together, term, rtol=1e-9, atol=1e-12)
    mean = torch.stack([part.loss for part in parts]).mean()
    torch.testing.assert_close(mean, whole.loss, rtol=1e-11, atol=0)
    ours, expected = gradients(model, mean), gradients(model, whole.loss)
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in ours.items():
        tolerance = 1e-9 * float(expected[name].abs().max()) + 1e-13 * scale
        assert float((gradient - expected[name]).abs().max()) <= tolerance, name
