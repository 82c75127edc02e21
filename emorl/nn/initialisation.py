"""The weight initialisation of EfficientMORL's released code."""

from __future__ import annotations

from torch import nn

RELEASED_GAIN = 0.02


def init_xavier(module: nn.Module, gain: float = RELEASED_GAIN) -> None:
    """Draw linear and convolution weights by Xavier normal; biases are zero.

    The released code does this with one gain for almost all layers, so that every network starts
    close to zero output; what it leaves at PyTorch's defaults is created after this call.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_normal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
