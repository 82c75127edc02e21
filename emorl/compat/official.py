"""Checkpoints and configurations of the released EfficientMORL code (pemami4911/EfficientMORL).

The released weights keep their shapes here; only their names differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emorl.fields import fit
from emorl.models.efficient_morl import EfficientMORL, EfficientMORLConfig
from emorl.models.efficient_morl.hierarchy import PriorKind
from emorl.models.pretrained import first_non_finite
from emorl.ops import Backend
from emorl.ops.mixture_nll import Likelihood
from emorl.paths import local
from emorl.runs.integrity import tensors_of

# Released name -> ours, tried in this order; the file's prefixes are already gone.
_RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"hvae_networks\.pos_embed_projection\.", "encoder.position.project."),
    (r"hvae_networks\.encoder_pt_1\.(\d+)\.", lambda m: f"encoder.convolutions.{int(m[1]) // 2}."),
    (r"hvae_networks\.encoder_pt_2\.0\.", "encoder.norm."),
    (r"hvae_networks\.encoder_pt_2\.1\.", "encoder.hidden."),
    (r"hvae_networks\.encoder_pt_2\.3\.", "encoder.output."),
    (r"hvae_networks\.init_posterior$", "posterior.initial"),
    (r"hvae_networks\.norm_slots\.", "posterior.norm_slots."),
    (r"hvae_networks\.norm_mu_pre_ff\.", "posterior.norm_mean."),
    (r"hvae_networks\.norm_softplus_pre_ff\.", "posterior.norm_raw."),
    (r"hvae_networks\.to_q\.", "posterior.query."),
    (r"hvae_networks\.to_k\.", "posterior.key."),
    (r"hvae_networks\.to_v\.", "posterior.value."),
    (r"hvae_networks\.mlp_mu\.", "posterior.mlp_mean."),
    (r"hvae_networks\.mlp_softplus\.", "posterior.mlp_raw."),
    (r"hvae_networks\.gru\.cell\.", "posterior.gru."),
    (r"hvae_networks\.gru\.(\w+)_l0$", r"posterior.gru.cell.\1"),
    (r"hvae_networks\.project_update\.", "posterior.gru.project."),
    (r"hvae_networks\.image_decoder\.pos_embed_projection\.", "decoder.position.project."),
    (r"hvae_networks\.indep_prior\.z_linear\.0\.", "prior.hidden."),
    (r"hvae_networks\.indep_prior\.z_mu\.", "prior.mean."),
    (r"hvae_networks\.indep_prior\.z_softplus\.", "prior.raw."),
    (r"refinenet\.encoding\.0\.", "refinement.hidden."),
    (r"refinenet\.encoding\.2\.", "refinement.encoded."),
    (r"refinenet\.loc\.", "refinement.mean."),
    (r"refinenet\.softplus\.", "refinement.raw."),
    (r"refinenet\.recurrence\.(\w+)_l0$", r"refinement.cell.\1"),
]
# Constants that older checkpoints carry, networks that later code dropped, and GECO's state.
_DROPPED = re.compile(r"gru\.cell\.zeros|generation_relation|geco_")
_DECODER = re.compile(r"hvae_networks\.image_decoder\.decode\.(\d+)\.(\w+)$")
_PRIORS: dict[tuple[bool, bool], PriorKind] = {
    (True, False): "bottom_up",
    (False, False): "reversed",
    (False, True): "reversed++",
}


def config_from_net(net: Mapping[str, Any]) -> EfficientMORLConfig:
    """The configuration that a released `Net` dictionary describes.

    Args:
        net: the "Net" part of a released JSON configuration; missing keys take its defaults.

    Raises:
        ValueError: if a value is impossible.
    """
    bottom_up = bool(net.get("bottom_up_prior", False))
    plusplus = bool(net.get("reverse_prior_plusplus", True))
    if (bottom_up, plusplus) not in _PRIORS:
        raise ValueError("Net: bottom_up_prior and reverse_prior_plusplus exclude each other")
    likelihoods: dict[str, Likelihood] = {"GMM": "mixture", "Gaussian": "gaussian"}
    likelihood = fit("Net: image_likelihood", net.get("image_likelihood", "Gaussian"), str)
    if likelihood not in likelihoods:
        raise ValueError(f"Net: image_likelihood: expected {[*likelihoods]}, got {likelihood!r}")
    size = fit("Net: input_size", net.get("input_size", [3, 64, 64]), tuple[int, int, int])
    return EfficientMORLConfig(
        image_size=size[1:],
        num_slots=net.get("K", 4),
        slot_dim=net.get("z_size", 64),
        stochastic_layers=net.get("stochastic_layers", 3),
        refinement_steps=net.get("refinement_iters", 3),
        decoder=net.get("image_decoder", "iodine"),
        likelihood=likelihoods[likelihood],
        sigma=_sigma(net.get("log_scale", math.log(0.1))),
        prior=_PRIORS[bottom_up, plusplus],
        gru="dual" if net.get("use_DualGRU", True) else "single",
    )


def _sigma(log_scale: Any) -> float:
    try:
        return math.exp(fit("Net: log_scale", log_scale, float))
    except OverflowError:
        raise ValueError(f"Net: log_scale: expected a logarithm, got {log_scale}") from None


def parameter_name(released: str, decoder_layers: int) -> str | None:
    """Name in emorl of a released parameter; None if emorl has no such parameter.

    Args:
        released: name in the checkpoint's "model", with or without its "module." prefix.
        decoder_layers: number of the decoder's hidden convolutions.

    Raises:
        ValueError: if the name is not one that any released version wrote.
    """
    name = _current_name(released)
    if _DROPPED.search(name):
        return None
    if match := _DECODER.match(name):
        layer = int(match[1]) // 2
        owner = "output" if layer == decoder_layers else f"convolutions.{layer}"
        return f"decoder.{owner}.{match[2]}"
    for pattern, replacement in _RENAMES:
        renamed, count = re.subn("^" + pattern, replacement, name)
        if count:
            return renamed
    raise ValueError(f"not a parameter of the released EfficientMORL: {released}")


def _current_name(released: str) -> str:
    """Undo the prefixes of distributed training and of earlier versions of the released code."""
    name = released.removeprefix("module.")
    if name.startswith(("pos_embed_projection.", "encoder_pt_")):
        return f"hvae_networks.{name}"
    if name.startswith("object_discovery_block."):
        return name.replace("object_discovery_block.", "hvae_networks.", 1)
    return name


def load_checkpoint(
    path: str | Path,
    net: Mapping[str, Any],
    refinement_steps: int | None = None,
    convolution_backend: Backend = "reference",
    *,
    allow_non_finite: bool = False,
) -> EfficientMORL:
    """Load a released `.pth` checkpoint.

    Args:
        path: the file; only tensors are read from it, never code (`weights_only=True`).
        net: the "Net" dictionary of the released configuration it was trained with.
        refinement_steps: I; None for the configuration's.
        convolution_backend: of the convolutions; "reference" rounds as the released code does,
            "auto" is faster on the CPU.
        allow_non_finite: take weights that are infinite or not a number.

    Returns:
        The model; `loss_weights` holds the multiplier of the checkpoint's GECO state.

    Raises:
        ValueError: if the file is damaged, is not such a checkpoint, does not fit `net`, or a
            weight is not finite, with the reason.
    """
    released = _read(path)
    config = config_from_net(net)
    config.convolution_backend = convolution_backend
    if refinement_steps is not None:
        config.refinement_steps = refinement_steps
    model = EfficientMORL(config)
    layers = len(model.decoder.convolutions)
    names = {name: parameter_name(name, layers) for name in released}
    state = {ours: released[name] for name, ours in names.items() if ours is not None}
    raw = next((v for k, v in released.items() if k.endswith("geco_beta")), None)
    if raw is not None and not (raw.numel() == 1 and raw.is_floating_point()):
        raise ValueError(f"{path}: geco_beta: expected one number, got {raw.dtype} {[*raw.shape]}")
    multiplier = 1.0 if raw is None else float(torch.nn.functional.softplus(raw))
    state["loss_weights"] = torch.tensor([multiplier, 1.0])
    _check_fit(path, state, model.state_dict())
    if not allow_non_finite and (name := first_non_finite(state)):
        raise ValueError(f"{path}: {name} is not finite (allow_non_finite=True takes it)")
    model.load_state_dict(state)
    return model


def _read(path: str | Path) -> dict[str, Tensor]:
    path = local(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    content = tensors_of(path.read_bytes(), path)
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f'{path}: expected a released checkpoint with the key "model"')
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ValueError(f"{path}: model: expected tensors, got {name}: {type(value).__name__}")
    return state


def _check_fit(path: str | Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise a ValueError about the first parameter that does not fit the configuration."""
    for name, value in expected.items():
        if name not in found:
            raise ValueError(f"{path}: does not fit the configuration: {name} is missing")
        if found[name].shape != value.shape:
            raise ValueError(
                f"{path}: does not fit the configuration: {name} is {[*found[name].shape]}, "
                f"expected {[*value.shape]}"
            )
        if not found[name].is_floating_point():
            raise ValueError(f"{path}: {name}: expected floats, got {found[name].dtype}")
    if extra := found.keys() - expected.keys():
        raise ValueError(f"{path}: does not fit the configuration: {min(extra)}")
