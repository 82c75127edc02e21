"""Drives the released EfficientMORL code from a checkout that the user has.

Nothing of that code is here. Its configuration library, sacred, is replaced by a stand-in that
hands the configuration's values to the functions that ask for them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import math
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emorl.models import EfficientMORLConfig


class _Ingredient:
    def __init__(self, name: str) -> None:
        self.name, self.values = name, dict[str, Any]()

    def config(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def capture(self, function: Callable[..., Any]) -> Callable[..., Any]:
        names = [*inspect.signature(function).parameters]

        @functools.wraps(function)
        def filled(*given: Any, **named: Any) -> Any:
            missing = set(names[len(given) :]) - set(named)
            return function(
                *given, **named, **{n: self.values[n] for n in missing if n in self.values}
            )

        return filled


def net_of(config: EfficientMORLConfig, steps: int) -> dict[str, Any]:
    """The released `Net` dictionary of a configuration, with I = `steps`."""
    return {
        "input_size": [3, *config.image_size],
        "K": config.num_slots,
        "z_size": config.slot_dim,
        "stochastic_layers": config.stochastic_layers,
        "refinement_iters": steps,
        "log_scale": math.log(config.sigma),
        "geco_warm_start": 1000,
        "image_decoder": config.decoder,
        "image_likelihood": {"gaussian": "Gaussian", "mixture": "GMM"}[config.likelihood],
        "use_DualGRU": config.gru == "dual",
        "bottom_up_prior": config.prior == "bottom_up",
        "reverse_prior_plusplus": config.prior == "reversed++",
    }


def check(checkout: Path) -> None:
    """Check that the folder holds the released code.

    Raises:
        FileNotFoundError: if there is no `lib/model.py` in the checkout.
    """
    if not (checkout / "lib/model.py").is_file():
        raise FileNotFoundError(
            f"{checkout}: expected a checkout of EfficientMORL, no lib/model.py"
        )


def build(checkout: Path, net: dict[str, Any], batch: int) -> nn.Module:
    """The released model.

    Raises:
        FileNotFoundError: if there is no `lib/model.py` in the checkout.
    """
    check(checkout)
    stand_in = types.ModuleType("sacred")
    stand_in.Ingredient = _Ingredient  # type: ignore[attr-defined]
    sys.modules["sacred"] = stand_in
    sys.path.insert(0, str(checkout))
    released: Any = importlib.import_module("lib.model")
    released.net.values.update(net)
    model: nn.Module = released.EfficientMORL(batch_size=batch)
    return model


@contextlib.contextmanager
def first_derivatives() -> Iterator[None]:
    """Make refinement differentiate without `create_graph`: its result is detached anyway."""
    grad = torch.autograd.grad

    def plain(*arguments: Any, **options: Any) -> Any:
        return grad(*arguments, **{**options, "create_graph": False, "retain_graph": True})

    torch.autograd.grad = plain
    try:
        yield
    finally:
        torch.autograd.grad = grad
