"""Peers whose model is Slot Attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from emorl.bench import released
from emorl.bench.peers.peer import Peer
from emorl.bench.peers.weights import Pairs, in_order, replaced
from emorl.models import SlotAttentionConfig, SlotAttentionModel


def _efficient_morl_config(side: int) -> SlotAttentionConfig:
    """For images of 35 pixels that of Tetrominoes, else that of CLEVR6."""
    if side == 35:
        return SlotAttentionConfig(
            image_size=(35, 35),
            num_slots=4,
            slot_dim=32,
            decoder="small",
            variant="efficient_morl",
        )
    return SlotAttentionConfig(image_size=(side, side), variant="efficient_morl")


def _efficient_morl(code: Any, config: SlotAttentionConfig, batch: int) -> nn.Module:
    return released.build_slot_attention(Path(code.__file__).parents[1], config, batch)


def _efficient_morl_pairs(ours: SlotAttentionModel, theirs: nn.Module) -> Pairs:
    loaded = released.our_slot_attention(theirs, ours.config)
    return [*zip(ours.parameters(), loaded.parameters(), strict=True)]


EFFICIENT_MORL = Peer(
    title="Slot Attention of EfficientMORL",
    repository="pemami4911/EfficientMORL",
    licence="MIT",
    file="lib/model.py",
    sizes=(96, 35),
    config=_efficient_morl_config,
    make=_efficient_morl,
    loss=lambda model, images: model(2 * images - 1)["total_loss"],
    pairs=_efficient_morl_pairs,
    stand_ins={"sacred": {"Ingredient": released.Ingredient}},
)


def _hong(code: Any, config: SlotAttentionConfig, batch: int) -> nn.Module:
    model: nn.Module = code.SlotAttentionAutoEncoder(
        config.image_size, config.num_slots, config.iterations, config.slot_dim
    )
    return model


def _hong_pairs(ours: Any, theirs: Any) -> Pairs:
    attention, encoder, decoder = theirs.slot_attention, theirs.encoder_cnn, theirs.decoder_cnn
    mlp = nn.ModuleList([attention.fc1, attention.fc2])
    pairs = [
        (ours.initial_slots.mean, attention.slots_mu[0]),
        (ours.initial_slots.raw, attention.slots_sigma[0].log()),
        *in_order(ours.encoder.convolutions, encoder),
        *in_order(ours.encoder.hidden, theirs.fc1),
        *in_order(ours.encoder.output, theirs.fc2),
        *_position(ours.encoder.position.project, encoder.encoder_pos.embedding),
        *in_order(ours.attention.query, attention.to_q),
        *in_order(ours.attention.key, attention.to_k),
        *in_order(ours.attention.value, attention.to_v),
        *in_order(ours.attention.gru, attention.gru),
        *in_order(ours.attention.mlp, mlp),
        *_position(ours.decoder.position.project, decoder.decoder_pos.embedding),
    ]
    for name in ("norm_inputs", "norm_slots", "norm_mlp"):
        pairs += in_order(getattr(ours.attention, name), attention.norm_slots)  # ones and zeros
    own = nn.ModuleList([*ours.decoder.convolutions, ours.decoder.output])
    return pairs + in_order(own, decoder)


def _position(ours: Any, theirs: Any) -> Pairs:
    """The map of position ramps, whose order is row, column, 1 - row, 1 - column there."""
    weight = theirs.weight[:, [2, 0, 1, 3]]
    return replaced(in_order(ours, theirs), ours, weight)


def _hong_loss(model: Any, images: Tensor) -> Tensor:
    target = 2 * images - 1
    return F.mse_loss(model(target)[0], target)


HONG = Peer(
    title="Slot Attention of evelinehong",
    repository="evelinehong/slot-attention-pytorch",
    licence="none",
    file="model.py",
    sizes=(128,),
    config=lambda side: SlotAttentionConfig(image_size=(side, side)),
    make=_hong,
    loss=_hong_loss,
    pairs=_hong_pairs,
    differences=(
        "its norm of the features is over all pixels and not learned",
        "queries, keys and values have biases",
        "no gradient reaches its initial slots' Gaussian",
    ),
)
