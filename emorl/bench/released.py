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
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from emorl.compat.official import load_checkpoint, parameter_name
from emorl.models import (
    EfficientMORL,
    EfficientMORLConfig,
    SlotAttentionConfig,
    SlotAttentionModel,
)


class Ingredient:
    """Stands in for sacred's: fills the arguments of captured functions from `values`."""

    def __init__(self, name: str) -> None:
        self.name, self.values = name, dict[str, Any]()

    def config(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Leave the function that names the values as it is."""
        return function

    def capture(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose missing arguments are filled."""
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
    """The released EfficientMORL.

    Its decoder "big" starts from 6x6, for images of 96x96; for other sizes the grid is made to fit.

    Raises:
        FileNotFoundError: if there is no `lib/model.py` in the checkout.
    """
    code = _code(checkout, net)
    model: Any = code.EfficientMORL(batch_size=batch)
    if net["image_decoder"] == "big":
        _fit_grid(code, model.hvae_networks.image_decoder, net, batch)
    return cast(nn.Module, model)


def build_slot_attention(checkout: Path, config: SlotAttentionConfig, batch: int) -> nn.Module:
    """The released Slot Attention; as `build`."""
    net = {
        "input_size": [3, *config.image_size],
        "K": config.num_slots,
        "z_size": config.slot_dim,
        "image_decoder": config.decoder,
    }
    code = _code(checkout, net)
    model: Any = code.SlotAttention(batch_size=batch)
    if config.decoder == "big":
        _fit_grid(code, model.image_decoder, net, batch)
    return cast(nn.Module, model)


def _code(checkout: Path, net: dict[str, Any]) -> Any:
    """This checkout's module `lib.model`, imported anew, with the values of the configuration."""
    check(checkout)
    for name in [*sys.modules]:
        if name.partition(".")[0] == "lib":
            del sys.modules[name]
    stand_in = types.ModuleType("sacred")
    stand_in.Ingredient = Ingredient  # type: ignore[attr-defined]
    sys.modules["sacred"] = stand_in
    sys.path.insert(0, str(checkout))
    code: Any = importlib.import_module("lib.model")
    code.net.values.update(net)
    return code


def _fit_grid(code: Any, decoder: Any, net: dict[str, Any], batch: int) -> None:
    """Let the decoder "big" start from a sixteenth of the image's sides."""
    _, height, width = net["input_size"]
    decoder.z_grid_shape = (height // 16, width // 16)
    decoder.positional_embedding = code.SlotAttention.create_positional_embedding(
        *decoder.z_grid_shape, net["K"] * batch
    )


def ours(theirs: nn.Module, net: dict[str, Any]) -> EfficientMORL:
    """Our EfficientMORL with the weights of the released one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({"model": theirs.state_dict()}, path)
        return load_checkpoint(path, net, convolution_backend="auto")


def our_slot_attention(theirs: nn.Module, config: SlotAttentionConfig) -> SlotAttentionModel:
    """Our Slot Attention with the weights of the released one."""
    model = SlotAttentionModel(config)
    layers = len(model.decoder.convolutions)
    state = {_slot_attention_name(name, layers): x for name, x in theirs.state_dict().items()}
    first = state.pop("posterior.initial")
    state["initial_slots.mean"], state["initial_slots.raw"] = first.chunk(2, dim=1)
    model.load_state_dict(state)
    return model


def _slot_attention_name(released: str, layers: int) -> str:
    """Our name of a parameter; encoder, decoder and projections are EfficientMORL's."""
    own = {"norm_pre_ff": "norm_mlp", "mlp": "mlp", "gru": "gru"}
    part, _, rest = released.partition(".")
    if part in own:
        return f"attention.{own[part]}.{rest.removesuffix('_l0')}"
    if part == "init_slots":
        return "posterior.initial"
    name = parameter_name(f"hvae_networks.{released}", layers)
    assert name is not None
    return name.replace("posterior.", "attention.")


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
