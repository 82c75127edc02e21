"""A model of one's own from emorl's blocks: encoder, slot attention, decoder, likelihood.

`python examples/new_model.py` trains it for a few steps on generated images.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from emorl.data import open_dataset
from emorl.nn import BroadcastSpec, ImageEncoder, SlotAttention, SpatialBroadcastDecoder
from emorl.ops import mixture_nll

DECODER = BroadcastSpec(
    layers=3, kernel=5, padding=2, final_padding=1, channels=32, activation="relu"
)


class MyModel(nn.Module):
    """Learned first slots, a bi-level gradient and a mixture of Gaussians."""

    def __init__(self, size: tuple[int, int], num_slots: int = 4, dim: int = 32) -> None:
        super().__init__()
        self.encoder = ImageEncoder(32, 3, size, gain=1.0)
        self.slots = SlotAttention(
            dim=dim,
            input_dim=32,
            num_slots=num_slots,
            initial_slots="learned",
            gradient="bilevel",
        )
        self.decoder = SpatialBroadcastDecoder(dim, DECODER, size, gain=1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Colours and mask logits, [B, K, 4, H, W], of images [B, 3, H, W] in [0, 1]."""
        slots = self.slots(self.encoder(2 * images - 1).dense())
        decoded: Tensor = self.decoder(slots.flatten(0, 1), images.shape[-2:])
        return decoded.unflatten(0, slots.shape[:2])


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and return the negative log likelihood of each step, in nats an image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args(arguments).steps
    images = open_dataset("tetrominoes-real10")[:].image / 255
    model = MyModel((35, 35))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        decoded = model(images)  # colours as they are: black, most of these images, ends a sigmoid
        loss = mixture_nll(images, decoded, sigma=0.3, kind="mixture", rgb_activation="none").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step}: {losses[-1]:.1f} nats")
    return losses


if __name__ == "__main__":
    main()
