"""The weight initialisation of DeepMind's IODINE."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def init_fan_in(module: nn.Module) -> None:
    """Draw weights with variance 1 / fan-in, truncated at two deviations, as Sonnet 1 does.

    Biases are zero, those of an LSTM likewise drawn, but its forget gates start with a bias of 1
    more.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            _truncated_normal(layer.weight, layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LSTMCell):
            for weight in (layer.weight_ih, layer.weight_hh, layer.bias_ih):
                _truncated_normal(weight, layer.input_size + layer.hidden_size)
            nn.init.zeros_(layer.bias_hh)
            with torch.no_grad():
                layer.bias_ih[layer.hidden_size : 2 * layer.hidden_size] += 1


def _truncated_normal(weight: Tensor, fan_in: int) -> None:
    deviation = fan_in**-0.5
    nn.init.trunc_normal_(weight, 0.0, deviation, -2 * deviation, 2 * deviation)
