"""Slot attention under `DistributedDataParallel`: gloo, on the CPU."""

from __future__ import annotations

import torch
from process_testing import run_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from emorl.compat import lucidrains
from emorl.nn import SlotAttention

MODULES = {
    "own": lambda: SlotAttention(dim=8, num_slots=3, bias=True),
    "lucidrains": lambda: lucidrains.SlotAttention(3, 8),
}


def gradients(forward: nn.Module, module: nn.Module, share: int) -> list[Tensor]:
    """Of a share's loss, whose inputs and noise are its own."""
    torch.manual_seed(share)
    module.zero_grad()
    forward(torch.randn(2, 12, 8)).square().sum().backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def compare() -> None:
    """Halves and their sum are exact, so both ways give the same bits."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for make in MODULES.values():
        torch.manual_seed(0)
        module = make()
        shares = zip(*(gradients(module, module, share) for share in (0, 1)), strict=True)
        expected = [(one + other) / 2 for one, other in shares]
        found = gradients(DistributedDataParallel(module), module, rank)
        assert len(found) == len([*module.parameters()])
        assert all(map(torch.equal, found, expected))
    torch.distributed.destroy_process_group()


def test_gradients_are_the_mean_of_both_processes() -> None:
    run_ranks(2, compare)
