"""What Winograd's algorithm rounds: the table in the docstring of `emorl.ops.convolution`."""

from __future__ import annotations

import os
import re

import pytest
import torch
from op_testing import DEVICE
from torch import Tensor

from emorl.ops import backends, convolution

OBSTACLE = backends(DEVICE)["convolution"]["native"]
BATCHES, CHANNELS = (1, 4, 16), (32, 64, 128)
pytestmark = [
    pytest.mark.skipif(OBSTACLE is not None or DEVICE != "cpu", reason=str(OBSTACLE)),
    pytest.mark.skipif(
        torch.backends.cpu.get_cpu_capability() != "AVX512",
        reason="PyTorch's own error, by which it is measured, differs between processors",
    ),
    pytest.mark.skipif(
        "ONEDNN_MAX_CPU_ISA" in os.environ,
        reason="PyTorch's own error, by which it is measured, is another without AVX-512",
    ),
]
# Ours is the same everywhere; PyTorch's differs with its threads (2.7 with one, 3.7 with two).
FACTOR = 2


def table(kernel: int, of: str) -> list[float]:
    """The row of a kernel: for 32, 64 and 128 channels, or for 1, 4 and 16 images."""
    row = re.search(rf"{kernel}x{kernel}: {of} +([\d. ]+)", str(convolution.__doc__))
    assert row is not None
    return [float(number) for number in row[1].split()]


def ratios(batch: int, channels: int, kernel: int) -> dict[str, float]:
    """The rms error against float64 over that of plain PyTorch."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight = normal(channels, channels, kernel, kernel) / (channels**0.5 * kernel)
    values = {"x": normal(batch, channels, 24, 24), "weight": weight, "bias": normal(channels)}
    values["x"] = values["x"].contiguous(memory_format=torch.channels_last)
    cotangent = normal(batch, channels, 24, 24)

    def results(dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
        leaves = {name: t.to(dtype).requires_grad_() for name, t in values.items()}
        output = convolution(**leaves, padding=kernel // 2, backend=backend)
        grads = torch.autograd.grad(output, list(leaves.values()), cotangent.to(dtype))
        return {"output": output.detach(), **dict(zip(leaves, grads, strict=True))}

    truth = results(torch.float64, "reference")
    native, plain = (
        {name: (x - truth[name]).square().mean().sqrt() for name, x in found.items()}
        for found in (results(torch.float32, name) for name in ("native", "reference"))
    )
    return {name: (native[name] / plain[name]).item() for name in truth}


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("channels", CHANNELS)
def test_outputs_and_gradients_of_images(channels: int, kernel: int) -> None:
    stated = table(kernel, "output, gradient of x")[CHANNELS.index(channels)]
    found = ratios(4, channels, kernel)
    assert stated / FACTOR < found["output"] < FACTOR * stated
    assert stated / FACTOR < found["x"] < FACTOR * stated


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("batch", BATCHES)
def test_gradients_of_weights(batch: int, kernel: int) -> None:
    stated = table(kernel, "gradient of the weight")[BATCHES.index(batch)]
    assert stated / FACTOR < ratios(batch, 64, kernel)["weight"] < FACTOR * stated
