"""Modules of `emorl.compat` against recorded outputs and gradients of the originals.

`python tests/compat/test_field_modules.py PACKAGE=MODULE ...` prints the recording anew, from
checkouts on the Python path, e.g. `videosaur=videosaur.modules.groupers`. All is float64.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

RECORDED = Path(__file__).parents[1] / "data" / "compat.json"
B, N, K, C, D = 2, 7, 3, 5, 6
MASK = torch.tensor([[False, True, False], [False, False, False]])


def wave(*shape: int, phase: float = 0.0) -> Tensor:
    """Numbers of no pattern, the same everywhere."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.7 * count + phase).view(shape)


INPUTS, SLOTS = wave(B, N, C, phase=0.1), wave(B, K, D, phase=0.2)


class Residual(nn.Sequential):
    """An `ff_mlp` as the configurations of ocl have it."""

    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(D), nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, D))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Case(NamedTuple):
    """How a module is made, and called with inputs [B, N, C] and slots [B, K, D]."""

    package: str
    make: Callable[[Any], nn.Module]
    call: Callable[[nn.Module, Tensor, Tensor], Any] = lambda m, x, slots: m(x, slots)
    inputs: Tensor = INPUTS


def grouped(module: nn.Module, x: Tensor, slots: Tensor) -> list[Tensor]:
    found = module(SimpleNamespace(features=x), slots, MASK)
    return [found.objects, found.feature_attributions]


def conditioned(module: nn.Module, x: Tensor, slots: Tensor) -> list[Tensor]:
    return [module(B)]


def without_slots(module: nn.Module, x: Tensor, slots: Tensor) -> Any:
    return module(x)


HEADS = {"n_heads": 2, "kvq_dim": 8, "use_projection_bias": True}
CASES: dict[str, Case] = {
    "hong": Case("evelinehong", lambda p: p.SlotAttention(K, C), without_slots),
    "hong, autoencoder": Case(
        "evelinehong",
        lambda p: p.SlotAttentionAutoEncoder((12, 10), K, 2, D),
        without_slots,
        wave(1, 3, 12, 10),
    ),
    "ocl": Case("ocl", lambda p: p.SlotAttention(D, C)),
    "ocl, heads, mlp": Case("ocl", lambda p: p.SlotAttention(D, C, ff_mlp=Residual(), **HEADS)),
    "ocl, masks": Case(
        "ocl", lambda p: p.SlotAttention(D, C, **HEADS), lambda m, x, s: m(x, s, MASK)
    ),
    "ocl, implicit": Case(
        "ocl", lambda p: p.SlotAttention(D, C, use_implicit_differentiation=True)
    ),
    "ocl, grouping": Case(
        "ocl",
        lambda p: p.SlotAttentionGrouping(C, D, use_empty_slot_for_masked_slots=True),
        grouped,
    ),
    "ocl, random": Case("ocl", lambda p: p.RandomConditioning(D, K), conditioned),
    "ocl, slotwise": Case("ocl", lambda p: p.SlotwiseLearntConditioning(D, K), conditioned),
    "ocl, learnt": Case("ocl", lambda p: p.LearntConditioning(D, K), conditioned),
    "slate": Case("slate", lambda p: p.SlotAttention(3, K, C, D, 8, 1)),
    "slate, heads": Case("slate", lambda p: p.SlotAttention(2, K, C, D, 8, 2)),
    "slate, encoder": Case(
        "slate", lambda p: p.SlotAttentionEncoder(2, K, C, D, 8, 4, 2), without_slots
    ),
    "videosaur": Case(
        "videosaur", lambda p: p.SlotAttention(C, D, kvq_dim=4), lambda m, x, s: m(s, x)
    ),
    "videosaur, no gru": Case(
        "videosaur",
        lambda p: p.SlotAttention(C, D, use_gru=False, use_mlp=False),
        lambda m, x, s: m(s, x, n_iters=2),
    ),
    "genera1z": Case("genera1z", lambda p: p.SlotAttention(3, D, 8, kv_dim=C)),
    "genera1z, mask": Case(
        "genera1z",
        lambda p: p.SlotAttention(2, D, 8, dropout=0.5, kv_dim=C).eval(),
        lambda m, x, s: m(x, s, smask=~MASK, num_iter=3),
    ),
    "genera1z, bi-level": Case(
        "genera1z", lambda p: p.SlotAttention(3, D, 8, kv_dim=C, trunc_bp="bi-level")
    ),
}


def first_weights(module: nn.Module) -> dict[str, list[float]]:
    """Shape and norm of every tensor of the state dict."""
    return {k: [*x.shape, float(x.double().norm())] for k, x in module.state_dict().items()}


def compute(case: Case, package: Any) -> dict[str, Any]:
    """First weights under a seed, then outputs and gradients with weights that are waves."""
    torch.manual_seed(0)
    module = case.make(package)
    first = first_weights(module)
    module = module.double()
    for part in module.modules():  # a plain tensor in evelinehong's
        if isinstance(getattr(part, "grid", None), Tensor):
            part.grid = part.grid.double()
    state = module.state_dict()
    for i, key in enumerate(sorted(state)):
        weight = 0.5 * wave(*state[key].shape, phase=float(i))
        state[key] = weight.abs() if key.endswith("sigma") else weight
    module.load_state_dict(state)
    x, slots = (y.clone().requires_grad_() for y in (case.inputs, SLOTS))
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)  # evelinehong's makes a layer at every call
    try:
        out = case.call(module, x, slots)
    finally:
        torch.set_default_dtype(torch.float32)
    results = (
        [out] if isinstance(out, Tensor) else [*out.values()] if isinstance(out, dict) else out
    )
    loss = sum((y * wave(*y.shape, phase=0.3)).sum() for y in results)
    leaves = {"input": x, "slots": slots, **dict(module.named_parameters())}
    grads = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True)
    return {
        "first": first,
        "outputs": [[*y.shape, *projections(y)] for y in results],
        "gradients": {
            name: projections(torch.zeros_like(leaf) if g is None else g)
            for (name, leaf), g in zip(leaves.items(), grads, strict=True)
        },
    }


def projections(x: Tensor) -> list[float]:
    """The norm, and three sums with other weights."""
    x = x.detach()
    sums = [float((x * wave(*x.shape, phase=p)).sum()) for p in (0.0, 1.0, 2.2)]
    return [float(x.norm()), *sums]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text())


@pytest.mark.parametrize("name", CASES)
def test_module_is_the_recorded_one(name: str, recorded: dict[str, Any]) -> None:
    """In float64 but for the rounding of sums in another order."""
    case, expected = CASES[name], recorded[name]
    found = compute(case, importlib.import_module(f"emorl.compat.{case.package}"))
    assert [*found["first"]] == [*expected["first"]]
    for key, value in expected["first"].items():
        assert found["first"][key] == pytest.approx(value, rel=1e-6), key
    assert found["gradients"].keys() == expected["gradients"].keys()
    assert len(found["outputs"]) == len(expected["outputs"])
    for ours, theirs in zip(found["outputs"], expected["outputs"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-11)
    largest = max(abs(x) for values in expected["gradients"].values() for x in values)
    for key, theirs in expected["gradients"].items():
        assert found["gradients"][key] == pytest.approx(theirs, rel=1e-9, abs=1e-11 * largest), key


if __name__ == "__main__":
    modules = dict(pair.split("=") for pair in sys.argv[1:])
    print(
        json.dumps(
            {
                name: compute(case, importlib.import_module(modules[case.package]))
                for name, case in CASES.items()
            }
        )
    )
