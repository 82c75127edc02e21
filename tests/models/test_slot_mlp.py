"""Slot MLP against a plain oracle and its own promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from slot_autoencoder_testing import (
    TINY,
    assert_same_gradients,
    error_left_on_four_scenes,
    gradients,
    tiny,
)

from emorl.models import SlotMLP, SlotMLPConfig, load_model
from emorl.models.slot_mlp import plain
from emorl.training import GECO


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"variant": "efficient_morl"},
        {"decoder": "big", "image_size": (32, 48)},
        {"decoder": "iodine", "encoder_layers": 4},
    ],
    ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()) or "default",
)
def test_objective_equals_plain_autograd(changes: dict[str, object], backend: str) -> None:
    model = tiny(SlotMLP, hidden_dim=7, backend=backend, **changes)
    images = torch.rand(2, 3, *model.config.image_size, dtype=torch.float64)
    loss, expected = model.objective(images).loss, plain.objective(model, images)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    assert_same_gradients(gradients(model, loss), gradients(model, expected))


def test_parameter_count_follows_from_the_layers() -> None:
    """Slot Attention's encoder and decoder, and an MLP on 16x16 of 128x128 pixels."""
    encoder = (75 * 64 + 64) + 3 * (25 * 64 * 64 + 64) + 5 * 64 + 2 * 64 + 2 * (64 * 64 + 64)
    decoder = 5 * (25 * 64 * 64 + 64) + (9 * 64 * 4 + 4) + 5 * 64
    mlp = (16 * 16 * 64 * 512 + 512) + (512 * 7 * 64 + 7 * 64)
    count = sum(p.numel() for p in SlotMLP().parameters())
    assert count == encoder + decoder + mlp == 9_454_916


def test_slots_have_an_order_and_no_noise() -> None:
    """Another first slot is what its own rows of the last layer say, and nothing else."""
    model = tiny(SlotMLP)
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    before, again = model(images), model(images, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(again.slots, before.slots, rtol=0, atol=0)
    model.output.weight.data[:5] += 0.1
    after = model(images)
    assert not torch.allclose(after.slots[:, 0], before.slots[:, 0])
    torch.testing.assert_close(after.slots[:, 1:], before.slots[:, 1:], rtol=0, atol=0)


def test_images_alone_decide_the_slots() -> None:
    """There are no iterations: nothing on the way, no attention."""
    result = tiny(SlotMLP)(torch.rand(2, 3, 9, 11), details=True)
    assert (result.attention, result.stages) == (None, ())
    assert result.slots.shape == (2, 3, 5)
    torch.testing.assert_close(result.masks.sum(1), torch.ones(2, 1, 9, 11).double())


def test_it_explains_four_scenes() -> None:
    assert error_left_on_four_scenes(SlotMLP, hidden_dim=32) < 0.25


def test_bf16_has_finite_loss_and_gradients() -> None:
    model = SlotMLP(SlotMLPConfig(**TINY))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.objective(torch.rand(2, 3, 9, 11)).loss
    assert loss.dtype == torch.float32
    for name, gradient in gradients(model, loss).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


def test_inference_compiles() -> None:
    model = tiny(SlotMLP).eval()
    images = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images).masks, model(images).masks)


def test_save_and_load(tmp_path: Path) -> None:
    model = SlotMLP(SlotMLPConfig(**TINY, hidden_dim=8))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, SlotMLP)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_slots": 4}, "num_slots: fixed by the network, expected 3, got 4"),
        ({"num_slots": 0}, "num_slots: expected 1 or more, got 0"),
        ({"num_slots": 2.0}, "num_slots: expected a whole number, got 2.0"),
        ({"iterations": 2}, "iterations: slot_mlp has none, expected None, got 2"),
        ({"refinement_steps": 0}, "refinement_steps: slot_mlp has none, expected None, got 0"),
        ({"geco": GECO(-1.0)}, "geco: slot_mlp has no KL term, expected None, got a GECO"),
        ({"kl_weight": 0.5}, "kl_weight: slot_mlp has no KL term, expected 1, got 0.5"),
    ],
)
def test_impossible_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(SlotMLP).objective(torch.rand(1, 3, 9, 11), **arguments)


def test_another_image_size_is_refused() -> None:
    message = "images: size fixed by the network, expected 9x11, got 11x9"
    with pytest.raises(ValueError, match=message):
        tiny(SlotMLP)(torch.rand(1, 3, 11, 9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 0}, "hidden_dim must be positive, got 0"),
        ({"variant": "paper"}, "variant: expected one of"),
        ({"decoder": "big"}, "must be multiples of 16, got 9x11"),
        ({"slot_dim": 0}, "slot_dim must be positive, got 0"),
    ],
)
def test_impossible_configurations(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlotMLP(SlotMLPConfig(**{**TINY, **changes}))
