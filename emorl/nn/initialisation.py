"""The released code's weight initialisation."""

from __future__ import annotations

from torch import nn


def init_xavier(module: nn.Module, gain: float = 0.02) -> None:
    """Draw linear and convolution weights by Xavier normal; biases are zero.

    The released code does this with gain 0.02 for almost all layers, so that every network starts
    close to zero output; what it leaves at PyTorch's defaults is created after this call.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_normal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
