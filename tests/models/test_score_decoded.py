"""Scoring slots whose decoded images IODINE looks at: what is computed, and what is kept."""

from __future__ import annotations

import pytest
import torch
from iodine_testing import TINY, form, some_images, tiny

from emorl.memory import most_allocated
from emorl.models import IODINE, IODINEConfig


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
