"""Peers whose model is MONet."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn

from emorl.bench.peers.peer import Peer
from emorl.bench.peers.weights import (
    DEVIATION,
    Pairs,
    fix_spread,
    in_order,
    inverse_softplus,
    replaced,
)
from emorl.models import MONet, MONetConfig


class _Attributes(dict[str, Any]):
    """A dictionary whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class _Flags:
    """Command line flags, of which none is wanted."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def _config(side: int, unet_channels: tuple[int, ...], colours: Any) -> MONetConfig:
    return MONetConfig(
        image_size=(side, side),
        num_slots=7,
        unet_channels=unet_channels,
        likelihood="mixture",
        rgb_activation=colours,
    )


def _with_equal_spread(ours: MONet, pairs: Pairs, layer: Any, raw: float) -> Pairs:
    """The pairs, where both codes' posteriors have the same deviation; `raw` is theirs."""
    fix_spread(layer, raw)
    dim = ours.config.slot_dim
    bias = layer.bias.detach().clone()
    bias[dim:] = inverse_softplus(DEVIATION**2 - 1e-5)  # variance softplus(raw) + 1e-5
    return replaced(pairs, ours.component.posterior, bias, "bias")


def _genesis(code: Any, config: MONetConfig, batch: int) -> nn.Module:
    model: nn.Module = code.MONet(
        _Attributes(
            K_steps=config.num_slots,
            prior_mode="softmax",
            montecarlo_kl=False,
            debug=False,
            pixel_bound=True,
            filter_start=config.unet_channels[0],
            img_size=config.image_size[0],
            comp_ldim=config.slot_dim,
            comp_enc_channels=config.encoder_channels[0],
            comp_dec_channels=config.decoder_channels,
            comp_dec_layers=4,
            pixel_std1=config.sigma_background,
            pixel_std2=config.sigma_foreground,
        )
    )
    return model


def _genesis_config(side: int) -> MONetConfig:
    """With its channels for images of 64 and 128 pixels."""
    blocks = int(math.log2(side)) - 1
    return _config(side, (32,) * (blocks // 2) + (64,) * (blocks - blocks // 2), "sigmoid")


def _genesis_loss(model: Any, images: Tensor) -> Tensor:
    """The loss without the constant of its likelihood, log(2 pi) / 2 for each value."""
    _, losses, *_ = model(images)
    constant = images[0].numel() * 0.5 * math.log(2 * math.pi)
    weights = MONetConfig()
    kl = weights.beta * torch.stack(losses["kl_l_k"]).sum(0) + weights.gamma * losses["kl_m"]
    loss: Tensor = (losses["err"] + kl).mean() - constant
    return loss


def _genesis_pairs(ours: MONet, theirs: Any) -> Pairs:
    net, vae, own = theirs.att_process.core, theirs.comp_vae, ours.component
    pairs = [
        *in_order(ours.attention.down, net.down),
        *in_order(ours.attention.bottleneck, net.mlp),
        *in_order(nn.ModuleList(reversed(ours.attention.up)), net.up),
        *in_order(ours.attention.output, net.final_conv),
        *in_order(own, vae.encoder_module),
        *in_order(own.decoder, vae.decoder_module),
    ]
    # Its encoder has the mask before the colours, its decoder y before x.
    encoder, decoder = own.convolutions[0], own.decoder.convolutions[0]
    pairs = replaced(pairs, encoder, vae.encoder_module.module[0].weight.roll(-1, dims=1))
    dim = ours.config.slot_dim
    swapped = vae.decoder_module.seq[1].weight[:, [*range(dim), dim + 1, dim]]
    pairs = replaced(pairs, decoder, swapped)
    raw = inverse_softplus(DEVIATION) - 0.5  # deviation softplus(raw + 0.5)
    return _with_equal_spread(ours, pairs, vae.encoder_module.module[-1], raw)


GENESIS = Peer(
    title="MONet of genesis",
    repository="applied-ai-lab/genesis",
    licence="GPL-3.0",
    file="models/monet_config.py",
    sizes=(64, 128),
    config=_genesis_config,
    make=_genesis,
    loss=_genesis_loss,
    pairs=_genesis_pairs,
    stand_ins={
        "attrdict": {"AttrDict": _Attributes},
        "forge": {"flags": _Flags()},
        "forge.experiment_tools": {"fprint": print},
        "simplejson": {},
        "tensorflow": {},
    },
)


def _baudm(code: Any, config: MONetConfig, batch: int) -> nn.Module:
    """Both networks; the model that trains them is no module, and lies beside them."""
    model = code.MONetModel(
        SimpleNamespace(
            num_slots=config.num_slots,
            z_dim=config.slot_dim,
            input_nc=3,
            beta=config.beta,
            gamma=config.gamma,
            lr=1e-4,
            isTrain=True,
            gpu_ids=[],
            checkpoints_dir="",
            name="",
            preprocess="",
        )
    )
    networks: Any = nn.ModuleList([model.netAttn, model.netCVAE])
    networks.model = [model]
    return cast(nn.Module, networks)


def _baudm_loss(networks: Any, images: Tensor) -> Tensor:
    """The loss, which its code differentiates as soon as it is there: here only later."""
    (model,) = networks.model
    model.set_input({"A": images, "A_paths": None})
    model.forward()
    with mock.patch.object(Tensor, "backward"):
        model.backward()
    loss: Tensor = model.loss_D + model.opt.beta * model.loss_E + model.opt.gamma * model.loss_mask
    return loss


def _baudm_pairs(ours: MONet, theirs: Any) -> Pairs:
    (net, vae), own = theirs, ours.component
    down = [getattr(net, f"downblock{n}") for n in range(1, 6)]
    up = [getattr(net, f"upblock{n}") for n in range(2, 7)]
    pairs = [
        *in_order(ours.attention.down, nn.ModuleList(down)),
        *in_order(ours.attention.bottleneck, net.mlp),
        *in_order(nn.ModuleList(reversed(ours.attention.up)), nn.ModuleList(up)),
        *in_order(ours.attention.output, net.output),
        *in_order(own, vae.encoder),
        *in_order(own.decoder, vae.decoder),
    ]
    raw = 2 * math.log(DEVIATION)  # variance exp(raw)
    return _with_equal_spread(ours, pairs, vae.encoder[-1], raw)


BAUDM = Peer(
    title="MONet of baudm",
    repository="baudm/MONet-pytorch",
    licence="BSD",
    file="models/monet_model.py",
    sizes=(64,),
    config=lambda side: _config(side, (64, 128, 256, 512, 512), "none"),
    make=_baudm,
    loss=_baudm_loss,
    pairs=_baudm_pairs,
)
