"""The released code's weight initialisation."""

from __future__ import annotations

from torch import nn


def init_small(module: nn.Module, gain: float = 0.02) -> None:
    """Draw linear and convolution weights by Xavier normal with a small gain; biases are zero.

    EfficientMORL's released code does this for almost all layers (paper.md lists the exceptions in
    `EfficientMORL`'s own constructors). With gain 0.02 every network starts close to zero output.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_normal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
