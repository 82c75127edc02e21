"""What the tests of Slot Attention and Slot MLP share."""

from __future__ import annotations

import torch
from torch import Tensor

from emorl.data import open_dataset
from emorl.models import ObjectCentricModel
from emorl.training.optimizers import make_optimizers

TINY = {
    "image_size": (9, 11),
    "num_slots": 3,
    "slot_dim": 5,
    "encoder_channels": 6,
    "encoder_layers": 2,
    "decoder": "small",
    "decoder_channels": 4,
}


def tiny(kind: type[ObjectCentricModel], **changes: object) -> ObjectCentricModel:
    """A small model in float64 whose weights are all far from zero."""
    model = kind(kind.Config(**{**TINY, **changes})).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(0.25 * noise)
    return model


def gradients(model: ObjectCentricModel, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(
    ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None], tolerance: float = 1e-9
) -> None:
    """Equal to a share of each gradient's largest value; None where the other is None."""
    assert {name for name, g in ours.items() if g is None} == {
        name for name, g in theirs.items() if g is None
    }
    scale = max(float(g.abs().max()) for g in theirs.values() if g is not None)
    for name, gradient in ours.items():
        expected = theirs[name]
        if gradient is not None and expected is not None:
            # some gradients are exactly zero in theory
            allowed = tolerance * float(expected.abs().max()) + 1e-13 * scale
            assert float((gradient - expected).abs().max()) <= allowed, name


def error_left_on_four_scenes(kind: type[ObjectCentricModel], **changes: object) -> float:
    """Squared error after 150 steps on four Tetrominoes scenes, as a share of a black image's.

    Every other pixel of the scenes, at [-1, 1]; with the colours' mean alone, a share of about 0.8
    is left.
    """
    scenes = open_dataset("tetrominoes", split="train").__getitems__(range(4))
    images = scenes.image[:, :, ::2, ::2] / 255
    config = {
        "image_size": (18, 18),
        "num_slots": 4,
        "slot_dim": 16,
        "encoder_channels": 16,
        "encoder_layers": 2,
        "decoder": "small",
        "decoder_channels": 16,
        "decoder_activation": "elu",
        "init_position_gain": 4.0,
        **changes,
    }
    model, steps, lr = kind(kind.Config(**config)), 150, 5e-3
    optimizers = make_optimizers(model.parameters(), "muon", lr)
    for step in range(steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, 2 - 2 * step / steps)
        model.zero_grad()
        loss = model.objective(images).loss
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return float(loss.detach() / (2 * images).square().mean())
