"""Peers whose model is IODINE."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from emorl.bench import released
from emorl.bench.peers.peer import Peer
from emorl.bench.peers.weights import Pairs, in_order, inverse_softplus
from emorl.models import IODINE, IODINEConfig

_KEPT = {"ours, activations kept": {"keep_activations": True}}


def _emami(code: Any, config: IODINEConfig, batch: int) -> nn.Module:
    code.net.values.update(
        input_size=[3, *config.image_size],
        z_size=config.slot_dim,
        K=config.num_slots,
        inference_iters=config.refinement_steps + 1,
        batch_size=batch,
        log_scale=math.log(config.sigma),
        refinenet_channels_in=16,
        lstm_dim=config.lstm_width,
        conv_channels=config.decoder_channels,
        kl_beta=1,
        geco_warm_start=1000,
    )
    model: nn.Module = code.IODINE()
    return model


def _emami_loss(model: Any, images: Tensor) -> Tensor:
    """The loss, whose code makes coordinates on a GPU, wherever the images are."""
    linspace = torch.linspace

    def beside_the_images(*arguments: Any, **options: Any) -> Tensor:
        return linspace(*arguments, **{**options, "device": images.device})

    with mock.patch.object(torch, "linspace", beside_the_images):
        loss: Tensor = model(images, None, 0)["total_loss"]
    return loss


def _emami_pairs(ours: IODINE, theirs: Any) -> Pairs:
    return [
        (ours.initial, theirs.lamda_0),
        *in_order(ours.decoder, theirs.image_decoder),
        *in_order(ours.refinement, theirs.refine_net),
    ]


EMAMI = Peer(
    title="IODINE.pytorch",
    repository="pemami4911/IODINE.pytorch",
    licence="MIT",
    file="lib/model.py",
    sizes=(96,),
    config=lambda side: IODINEConfig(image_size=(side, side)),
    make=_emami,
    loss=_emami_loss,
    pairs=_emami_pairs,
    stand_ins={"sacred": {"Ingredient": released.Ingredient}},
    remarks=("its coordinates, made on a GPU always, are made where the images are",),
    alternatives=_KEPT,
)


def _lin_config(side: int) -> IODINEConfig:
    """CLEVR6's, as DeepMind released it, with the likelihood and the first posterior of theirs."""
    return IODINEConfig(
        image_size=(side, side),
        refinement_steps=5,
        decoder_kernel=3,
        decoder_final_kernel=3,
        decoder_channels=64,
        inputs="deepmind",
        encoder_layers=4,
        encoder_kernel=3,
        encoder_stride=2,
        encoder_channels=64,
        pooling="mean",
        code_width=256,
        merge_width=None,
        lstm_width=256,
        init_gain=None,
        init_raw=inverse_softplus(1.0),
    )


def _lin(code: Any, config: IODINEConfig, batch: int) -> nn.Module:
    spec = config.refinement
    architecture = SimpleNamespace(
        ITERS=config.refinement_steps,
        SLOTS=config.num_slots,
        SIGMA=config.sigma,
        DIM_LATENT=config.slot_dim,
        IMG_SIZE=config.image_size[0],
        IMG_CHANNELS=3,
        LAYERNORM=True,
        STOP_GRADIENT=False,
        ENCODING=(
            *("posterior", "grad_post", "image", "means", "mask", "mask_logits"),
            *("mask_posterior", "grad_means", "grad_mask", "likelihood"),
            *("leave_one_out_likelihood", "coordinate"),
        ),
        REF=SimpleNamespace(
            CONV_CHAN=spec.channels,
            CONV_LAYERS=spec.layers,
            MLP_UNITS=spec.lstm_width,
            KERNEL_SIZE=spec.kernel,
            STRIDE=spec.stride,
        ),
        DEC=SimpleNamespace(
            CONV_CHAN=config.decoder_channels,
            CONV_LAYERS=config.decoder_layers,
            KERNEL_SIZE=config.decoder_kernel,
        ),
    )
    model: nn.Module = code.IODINE(architecture)
    return model


def _lin_loss(model: Any, images: Tensor) -> Tensor:
    """The loss without the constant of its likelihood, log(2 pi) / 2 for each value and step."""
    steps = model.n_iters + 1
    constant = images[0].numel() * 0.5 * math.log(2 * math.pi)
    loss: Tensor = model(images) - constant * sum(range(1, steps + 1)) / steps
    return loss


def _lin_pairs(ours: Any, theirs: Any) -> Pairs:
    refinement = theirs.refine
    return [
        *in_order(ours.decoder, theirs.decoder),
        *in_order(ours.refinement.convolutions, refinement.mlc),
        *in_order(ours.refinement.code, refinement.mlp),
        *in_order(ours.refinement.cell, refinement.lstm),
        *in_order(ours.refinement.mean, refinement.mean_update),
        *in_order(ours.refinement.raw, refinement.logvar_update),
    ]


LIN = Peer(
    title="IODINE of zhixuan-lin",
    repository="zhixuan-lin/IODINE",
    licence="MIT",
    file="lib/modeling/iodine.py",
    sizes=(64,),
    config=_lin_config,
    make=_lin,
    loss=_lin_loss,
    pairs=_lin_pairs,
    differences=(
        "its refinement has other inputs: a leave-one-out likelihood, no constants",
        "its norms are not learned",
        "its variances are exponentials",
        "its gradients of posteriors are of the batch's sum",
        "no gradient passes the inputs of its refinement",
        "its forward pass differentiates each score, and its backward pass does so again",
    ),
    alternatives=_KEPT,
)
