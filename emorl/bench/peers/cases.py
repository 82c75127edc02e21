"""The peers that are known, their cases, and the steps of a case.

"forward" is the training loss with its derivatives recorded, "forward+backward" differentiates it
too. Weights are not updated.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from emorl.bench import macs
from emorl.bench.macs import Count
from emorl.bench.passes import passes
from emorl.bench.peers import iodine, monet, slot_attention, weights
from emorl.bench.peers.peer import Peer, build
from emorl.bench.step.variants import set_precision
from emorl.bench.suite import Record
from emorl.bench.tally import Tally
from emorl.bench.workers import Step
from emorl.models import MODELS

PEERS: dict[str, Peer] = {
    "efficientmorl-slot-attention": slot_attention.EFFICIENT_MORL,
    "evelinehong-slot-attention": slot_attention.HONG,
    "pemami-iodine": iodine.EMAMI,
    "zhixuan-lin-iodine": iodine.LIN,
    "genesis-monet": monet.GENESIS,
    "baudm-monet": monet.BAUDM,
}
OURS, THEIRS = "ours", "theirs"


class Case(NamedTuple):
    """A peer, its checkout, and what it is timed at."""

    peer: str
    checkout: Path
    size: int
    batch: int
    device: str

    def __str__(self) -> str:
        return f"{PEERS[self.peer].title}, {self.size}x{self.size}, batch {self.batch}"


def variants(case: Case) -> list[str]:
    """Ours, ours in other ways, theirs."""
    return [OURS, *PEERS[case.peer].alternatives, THEIRS]


def _networks(case: Case, variant: str) -> tuple[Any, Any, int]:
    """Both networks with the same weights where they fit, and the numbers that are the same."""
    peer = PEERS[case.peer]
    set_precision("float32")
    torch.manual_seed(0)
    config = replace(peer.config(case.size), **peer.alternatives.get(variant, {}))
    theirs = build(case.peer, peer, case.checkout, config, case.batch)
    kind = next(kind for kind in MODELS.values() if isinstance(config, kind.Config))
    ours: Any = kind(config)
    shared = weights.copy(peer.pairs(ours, theirs))
    return ours.train(), theirs.train(), shared


def steps(case: Case, variant: str) -> dict[str, Step]:
    """The steps of a variant, by part."""
    ours, theirs, _ = _networks(case, variant)
    model: Any = theirs if variant == THEIRS else ours
    model.to(case.device)
    images = _images(case)

    def loss() -> Tensor:
        if model is ours:
            objective: Tensor = ours.objective(images).loss
            return objective
        return PEERS[case.peer].loss(theirs, images)

    return passes(model, loss)


def comparison(case: Case) -> Record:
    """What can be compared without a clock: weights and multiply-accumulates of an image."""
    ours, theirs, shared = _networks(case, OURS)
    images = _images(case._replace(device="cpu"))
    with Tally(theirs) as tally:
        PEERS[case.peer].loss(theirs, images).backward()
    counted = macs.macs(ours, batch=case.batch)
    return {
        "parameters": {OURS: counted.parameters, THEIRS: _parameters(theirs)},
        "shared_parameters": shared,
        "macs": {
            THEIRS: Count.of(tally, case.batch).total,
            "ours, as published": counted.as_published.forward_and_backward.total,
            "ours, as computed": counted.as_computed.forward_and_backward.total,
        },
    }


def _parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _images(case: Case) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return torch.rand(case.batch, 3, case.size, case.size, generator=noise).to(case.device)
