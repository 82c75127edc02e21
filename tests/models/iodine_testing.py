"""Small IODINEs, of both published forms."""

from __future__ import annotations

import pytest
import torch

from emorl.models import IODINE, IODINEConfig

TINY = {
    "image_size": (9, 8),
    "num_slots": 3,
    "slot_dim": 5,
    "refinement_steps": 2,
    "decoder_layers": 2,
    "decoder_channels": 4,
    "encoder_layers": 2,
    "encoder_channels": 4,
    "code_width": 6,
    "merge_width": 7,
    "lstm_width": 5,
    "backend": "reference",
}
DEEPMIND = {
    "decoder_padding": 2,
    "decoder_final_kernel": 5,
    "decoder_constant": 5.0,
    "rgb_activation": "none",
    "likelihood": "logistic",
    "sigma": 0.2,
    "inputs": "deepmind",
    "coordinates": "cosine",
    "encoder_stride": 2,
    "pooling": "mean",
    "code_layers": 2,
    "merge_width": None,
    "prior": "softplus",
    "step_weights": "linspace",
    "init_gain": None,
}
FORMS = {"authors": {}, "deepmind": DEEPMIND}
form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def tiny(**changes: object) -> IODINE:
    """A small model in float64 whose weights are all far from zero."""
    model = IODINE(IODINEConfig(**{**TINY, **changes})).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(0.25 * noise)
    return model


def some_images() -> torch.Tensor:
    return torch.rand(2, 3, 9, 8, dtype=torch.float64)
