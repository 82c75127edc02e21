"""Scoring slots whose decoded images IODINE looks at: what is computed, and what is kept."""

from __future__ import annotations

import pytest
import torch
from iodine_testing import TINY, form, some_images, tiny
from torch import nn

from emorl.memory import most_allocated
from emorl.models import IODINE, IODINEConfig
from emorl.models.iodine import score_decoded


def peak(model: IODINE, steps: int) -> int:
    """Most bytes in tensors at one time of a training step, beyond those before it."""
    images = torch.rand(1, 3, 24, 24)
    return most_allocated(lambda: model.objective(images, refinement_steps=steps).loss.backward())


@form
def test_activations_of_one_step_are_in_memory_at_a_time(form: dict) -> None:
    wide = {"decoder_channels": 64, "encoder_channels": 64, "image_size": (24, 24)}
    activations = 2 * 3 * 64 * 24 * 24 * 4  # of the decoder's two layers, float32
    grown = {}
    for keep in (False, True):
        model = IODINE(IODINEConfig(**{**TINY, **form, **wide, "keep_activations": keep}))
        model.objective(torch.rand(1, 3, 24, 24)).loss.backward()  # so that gradients exist
        grown[keep] = (peak(model, 6) - peak(model, 3)) / 3  # at 2, another moment may be it
    assert grown[False] < 0.07 * activations  # two images of 4 channels
    assert grown[True] > activations


@pytest.mark.parametrize(("keep", "backward"), [(False, 3), (True, 0)])
def test_how_often_the_decoder_runs(keep: bool, backward: int) -> None:
    model, counted = tiny(keep_activations=keep), []
    model.decoder.register_forward_hook(lambda *_: counted.append(1))
    loss = model.objective(some_images(), refinement_steps=3).loss
    assert len(counted) == 4
    loss.backward()
    assert len(counted) == 4 + backward


def test_gradients_of_weights_are_computed_once() -> None:
    """Refinement descends with respect to slots; the fused convolution would compute both."""
    model, asked = tiny(), []
    model.decoder.register_forward_hook(
        lambda decoder, *_: asked.append({p.requires_grad for p in decoder.parameters()})
    )
    loss = model.objective(some_images(), refinement_steps=2).loss
    assert asked == [{False}, {False}, {True}]  # the last score is differentiated for good
    loss.backward()
    assert asked[3:] == [{True}, {True}]


@pytest.mark.parametrize("part", ["decoder", "refinement"])
@pytest.mark.parametrize("keep", [False, True])
def test_dropout_is_the_same_when_a_network_runs_again(part: str, keep: bool) -> None:
    """A kept activation knows its mask; one that is computed again has to draw it again."""
    found, images = [], some_images()
    for kept in (keep, True):
        model = tiny(keep_activations=kept)
        layers = getattr(model, part).convolutions
        layers[1] = nn.Sequential(layers[1], nn.Dropout(0.5))
        torch.manual_seed(3)
        loss = model.objective(images, generator=torch.Generator().manual_seed(2)).loss
        after = torch.get_rng_state()
        loss.backward()
        assert torch.equal(torch.get_rng_state(), after)  # as plain autograd leaves it
        found.append({"loss": loss, **{n: p.grad for n, p in model.named_parameters()}})
    torch.testing.assert_close(*found)


def test_a_captured_network_with_dropout_keeps_its_activations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A capture hides the generator's state; where nothing is drawn, it is not needed."""
    monkeypatch.setattr(score_decoded, "capturing", lambda: True)
    plain, dropping = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    assert score_decoded.repeatable(plain)
    assert not score_decoded.repeatable(plain, dropping)
    assert score_decoded.repeatable(plain, dropping.eval())


def test_shapes_can_be_asked_for_without_data() -> None:
    model, images = tiny().to("meta"), some_images().to("meta")
    assert model(images).masks.shape == (2, 3, 1, 9, 8)
    model.objective(images).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
