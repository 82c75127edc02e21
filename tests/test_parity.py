"""Numbers that must never drift: loss, terms and gradients of small models with made-up weights.

They were recorded when the same code agreed with the released code's own output (test_official.py)
and with a plain implementation (test_efficient_morl.py), and cover whoever has no released
checkpoint at hand. `python tests/test_parity.py` prints the file anew.

All is computed in float64, but for the position ramps, which are float32 numbers in every model,
and whose last bit is the processor's: `parity_ramps.json` has those of the recording.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from emorl.models import EfficientMORL, EfficientMORLConfig
from emorl.training import GECO

RECORDED = Path(__file__).parent / "data" / "parity.json"
RAMPS = json.loads((Path(__file__).parent / "data" / "parity_ramps.json").read_text())
CASES: dict[str, dict] = {
    "tetrominoes-geco": {
        "image_size": (35, 35),
        "slot_dim": 8,
        "decoder": "small",
        "sigma": 0.3,
        "refinement_steps": 3,
    },
    "clevr-mixture": {
        "image_size": (16, 20),
        "num_slots": 5,
        "slot_dim": 8,
        "likelihood": "mixture",
        "refinement_steps": 1,
    },
    "single-gru-bottom-up": {
        "image_size": (12, 12),
        "slot_dim": 8,
        "gru": "single",
        "prior": "bottom_up",
        "refinement_steps": 2,
    },
}


def _wave(count: int, phase: float) -> torch.Tensor:
    return torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + phase)


def recorded_ramp(
    start: float, end: float, steps: int, device: torch.device | None = None
) -> torch.Tensor:
    """Instead of `torch.linspace` in float32."""
    return torch.tensor(RAMPS[f"{start} to {end}"][str(steps)], device=device)


@patch("torch.linspace", recorded_ramp)
def compute(case: str) -> dict[str, float]:
    config = EfficientMORLConfig(encoder_channels=8, encoder_layers=2, **CASES[case])
    model = EfficientMORL(config).double()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = (0.3 * _wave(parameter.numel(), float(i))).view_as(parameter)
    height, width = config.image_size
    images = 0.5 + 0.5 * _wave(2 * 3 * height * width, 0.1).view(2, 3, height, width)
    geco = GECO(-1.3, moving_average=-80.0, raw_multiplier=0.9) if "geco" in case else None
    torch.manual_seed(0)
    result = model.objective(images, geco=geco)
    result.loss.backward()
    numbers = {"loss": result.loss, "nll": result.nll, "kl": result.kl, **result.diagnostics}
    for name, parameter in model.named_parameters():
        if name != "posterior.norm_slots.bias":  # zero in theory: the softmax over slots cancels it
            assert parameter.grad is not None
            numbers[f"gradient {name}"] = parameter.grad.norm()
    return {name: float(value.detach()) for name, value in numbers.items()}


def part_of(name: str) -> str:
    """Of a gradient's name, "gradient decoder.output.bias": the network."""
    return name.split(".")[0]


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_the_recorded_ones(case: str) -> None:
    """A gradient that slopes near 0 make tiny is a difference of numbers like its neighbours'.

    Each is a sum over pixels, slots, images and refinement steps: n errors of random sign, of an
    eps of the largest gradient of the same network each.
    """
    recorded = json.loads(RECORDED.read_text())[case]
    config = EfficientMORLConfig(**CASES[case])
    terms = 2 * config.num_slots * math.prod(config.image_size) * (config.refinement_steps + 1)
    rounding = torch.finfo(torch.float64).eps * terms**0.5
    found = compute(case)
    assert found.keys() == recorded.keys()
    for name, value in recorded.items():
        alike = [abs(x) for other, x in recorded.items() if part_of(other) == part_of(name)]
        assert found[name] == pytest.approx(value, rel=1e-8, abs=rounding * max(alike)), name


if __name__ == "__main__":
    print(json.dumps({case: compute(case) for case in CASES}, indent=1))
