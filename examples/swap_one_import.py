"""One model, trained with lucidrains' slot attention and with ours: the same losses, less time.

`pip install slot-attention`, then `python examples/swap_one_import.py`.
"""

from __future__ import annotations

import argparse
import importlib
import time
from typing import Any

import torch
from torch import Tensor, nn

THEIRS, OURS = "slot_attention", "emorl.compat.lucidrains"  # the one import that is changed


class Autoencoder(nn.Module):
    """Slots of a set of vectors, and a reconstruction that mixes what slots say of each place.

    Args:
        package: module that `SlotAttention` is imported from.
        inputs: N, number of vectors.
        dim: D, their width.
        slots: K.
    """

    def __init__(self, package: str, inputs: int, dim: int, slots: int) -> None:
        super().__init__()
        self.place = nn.Parameter(0.1 * torch.randn(inputs, dim))
        attention: Any = importlib.import_module(package)
        self.slots = attention.SlotAttention(num_slots=slots, dim=dim, iters=3)
        self.decode = nn.Linear(dim, dim + 1)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of x [B, N, D]."""
        slots = self.slots(x + self.place)
        decoded = self.decode(torch.relu(slots[:, :, None] + self.place))  # [B, K, N, D + 1]
        masks = decoded[..., -1:].softmax(dim=1)
        return (masks * decoded[..., :-1]).sum(dim=1)


def train(package: str, steps: int, batch: int, inputs: int, dim: int) -> tuple[list[float], float]:
    """Losses of all steps, and the seconds of processor time that they took."""
    torch.manual_seed(0)
    model = Autoencoder(package, inputs, dim, slots=7)
    data = torch.randn(batch, inputs, dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses, begin = [], time.process_time()
    for _ in range(steps):
        loss = (model(data) - data).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, time.process_time() - begin


def main(arguments: list[str] | None = None) -> dict[str, tuple[list[float], float]]:
    """Train with each package and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {"steps": 20, "batch": 4, "inputs": 4096, "dim": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args(arguments))
    results = {}
    for package in (THEIRS, OURS):
        losses, seconds = results[package] = train(package, **options)
        print(f"{package}: loss {losses[0]:.6f} to {losses[-1]:.6f} in {seconds:.2f} s")
    return results


if __name__ == "__main__":
    main()
