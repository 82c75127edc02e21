"""`emorl.compat.lucidrains` against the package itself (`pip install slot-attention`)."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from rounding_testing import assert_rounded, rounding_of
from torch import Tensor, nn

from emorl.compat import lucidrains

theirs: Any = pytest.importorskip("slot_attention", reason="pip install slot-attention")

D = 16
MODULES: dict[str, dict[str, Any]] = {
    "SlotAttention": {},
    "SlotAttention narrow": {"iters": 2, "eps": 0.01, "hidden_dim": 4},
    "MultiHeadSlotAttention": {"heads": 2, "dim_head": 6},
    "SlotAttentionExperimental": {"iters": 2},
}


def made(package: Any, name: str, **options: Any) -> nn.Module:
    """A module, or one in a wrapper: "OrthoSlotWrapper of SlotAttention"."""
    torch.manual_seed(0)
    wrapper, _, inner = name.rpartition(" of ")
    module = getattr(package, inner.split()[0])(3, D, **options)
    if wrapper == "MetaSlotAttention":
        return package.MetaSlotAttention(module, codebook_size=2)
    return getattr(package, wrapper)(module) if wrapper else module


def called(module: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    """Results and gradients of the inputs and all parameters."""
    torch.manual_seed(1)
    out = module(x, **options)
    results = [y for y in (out if isinstance(out, tuple) else (out,)) if y.dtype == x.dtype]
    loss = sum((y * torch.linspace(-1, 1, y.numel()).to(y).view_as(y)).sum() for y in results)
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    return [*results, *torch.autograd.grad(loss, wanted)]


def inputs(**options: Any) -> Tensor:
    x = torch.randn(2, 21, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x.to(**options).requires_grad_()


def assert_alike(ours: nn.Module, other: nn.Module, run: Any = called, **options: Any) -> None:
    """All numbers agree but for the rounding of sums in another order."""
    x, run = inputs(dtype=next(other.parameters()).dtype), partial(run, **options)
    rounding = rounding_of(run, other, x)
    assert_rounded(run(ours, x), run(other, x), rounding)


WRAPPED = ("AdaptiveSlotWrapper of SlotAttention", "OrthoSlotWrapper of SlotAttention")
WRAPPED += ("OrthoSlotWrapper of SlotAttentionExperimental", "MetaSlotAttention of SlotAttention")


@pytest.mark.parametrize("name", [*MODULES, *WRAPPED])
def test_first_weights_outputs_and_gradients_are_theirs(name: str) -> None:
    ours, other = (made(package, name, **MODULES.get(name, {})) for package in (lucidrains, theirs))
    first, expected = ours.state_dict(), other.state_dict()
    assert [*first] == [*expected]
    for key, value in expected.items():
        assert first[key].equal(value), key
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.load_state_dict(other.state_dict())
    dtype = torch.float32 if "Meta" in name else torch.float64  # theirs knows no other
    assert_alike(ours.to(dtype), other.to(dtype))
    if "Wrapper" not in name and "Meta" not in name:
        assert_alike(ours, other, num_slots=5)


def test_attributes_that_users_read() -> None:
    for name in ("SlotAttention", "MultiHeadSlotAttention"):
        ours, other = made(lucidrains, name), made(theirs, name)
        for key in ("dim", "num_slots", "iters", "eps", "scale"):
            assert getattr(ours, key) == getattr(other, key)


def test_the_scale_before_version_1_5() -> None:
    ours, other = (made(p, "MultiHeadSlotAttention", dim_head=5) for p in (lucidrains, theirs))
    legacy = made(lucidrains, "MultiHeadSlotAttention", dim_head=5, legacy_scale=True)
    other.scale = D**-0.5
    assert_alike(legacy.double(), other.double())
    with pytest.raises(AssertionError):
        assert_alike(ours.double(), other)


def test_a_second_derivative_is_that_of_the_reference() -> None:
    def second(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)

    ours = made(lucidrains, "SlotAttention", backend="reference")
    assert_alike(ours.double(), made(theirs, "SlotAttention").double(), second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_stay_as_near_to_float64(dtype: torch.dtype) -> None:
    """Errors of both are of the dtype's rounding; ours may be twice theirs, and one rounding."""
    other = made(theirs, "SlotAttention").to(dtype)
    torch.manual_seed(1)
    x = inputs(dtype=dtype)
    narrow = other(x).double()
    ours = made(lucidrains, "SlotAttention").to(dtype)
    torch.manual_seed(1)
    found = ours(x)
    assert found.dtype == dtype
    torch.manual_seed(1)
    noise = torch.randn(2, 3, D, dtype=dtype).double()
    exact = copy.deepcopy(other).double()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "randn", lambda *_, **__: noise)
        truth = exact(x.double())
    error, own = ((y - truth).abs().max() for y in (found.double(), narrow))
    assert error <= 2 * own + torch.finfo(dtype).eps * truth.abs().max()


OF_EACH = [
    ({"dim": 0}, "dim: expected at least 1, got 0"),
    ({"iters": 2.5}, "iters: expected a whole number, got 2.5"),
    ({"iters": -1}, "iters: expected at least 0, got -1"),
    ({"num_slots": -2}, "num_slots: expected at least 1, got -2"),
]
OF_HEADS = [
    ({"dim_head": 0}, "dim_head: expected at least 1, got 0"),
    ({"heads": 0}, "heads: expected at least 1, got 0"),
]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        *((lucidrains.SlotAttention, *case) for case in OF_EACH),
        *((lucidrains.MultiHeadSlotAttention, *case) for case in OF_EACH + OF_HEADS),
        *((lucidrains.SlotAttentionExperimental, *case) for case in OF_EACH),
    ],
)
def test_sizes_that_mean_nothing_are_one_line(
    kind: type[nn.Module], options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^slot attention: {message}$"):
        kind(**{"num_slots": 3, "dim": 8, **options})
    if "num_slots" in options:
        with pytest.raises(ValueError, match=f"^slot attention: {message}$"):
            kind(3, 8)(torch.zeros(1, 4, 8), **options)


@pytest.mark.parametrize(
    "kind",
    [
        lucidrains.SlotAttention,
        lucidrains.MultiHeadSlotAttention,
        lucidrains.SlotAttentionExperimental,
    ],
)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(1, 4, 7), r"expected a tensor \[B, N, 8\], got \[1, 4, 7\]"),
        (torch.zeros(4, 8), r"expected a tensor \[B, N, 8\], got \[4, 8\]"),
        ([1.0], r"expected a tensor \[B, N, 8\], got list"),
        (torch.zeros(1, 4, 8, dtype=torch.int32), "expected floats, got torch.int32"),
    ],
)
def test_inputs_that_do_not_fit_are_one_line(
    kind: type[nn.Module], inputs: object, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^slot attention: inputs: {message}$"):
        kind(3, 8)(inputs)


def test_settings_of_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="legacy_scale: expected true or false, got no"):
        lucidrains.MultiHeadSlotAttention(3, 8, legacy_scale="no")
    with pytest.raises(ValueError, match="temperature: expected a number, got nan"):
        lucidrains.AdaptiveSlotWrapper(lucidrains.SlotAttention(3, 8), float("nan"))
