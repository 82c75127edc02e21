"""`emorl.nn.SlotAttention` against plain PyTorch, in all its variants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emorl.nn import SlotAttention

B, N, K, D, C, T = 2, 11, 3, 8, 6, 3

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "no norms": {"norm_inputs": False, "norm_slots": False},
    "no mlp, no gru": {"hidden": None, "recurrent": False},
    "wide projections": {"projected": 12, "bias": True},
    "heads": {"heads": 2, "combine_heads": True, "bias": True},
    "heads that compete": {"heads": 2, "softmax_over": "slots_heads", "bias": True},
    "few inputs": {"heads": 4, "projected": 4, "softmax_over": "slots_heads"},
    "scale, eps": {"scale": 0.7, "eps": 0.01, "norm_eps": 1e-3},
    "eps in the sum": {"eps": 0.02, "eps_in": "sum", "bias": True},
    "weighted sum": {"update": "sum", "eps": 0.03, "bias": True},
    "sum, heads": {"update": "sum", "heads": 2, "softmax_over": "slots_heads"},
    "sum, heads alone": {"eps_in": "sum", "eps": 0.02, "heads": 2},
    "sum without eps": {"update": "sum", "eps_in": "sum"},
    "normalised state": {"gru_state": "normalised"},
    "implicit": {"gradient": "implicit"},
    "bilevel": {"gradient": "bilevel", "bias": True},
}
MASKS = ("none", "slots", "inputs", "both")


def module(**options: Any) -> SlotAttention:
    return SlotAttention(dim=D, input_dim=C, hidden=options.pop("hidden", 10), **options).double()


def plain(m: SlotAttention, x: Tensor, slots: Tensor, masks: dict[str, Tensor]) -> list[Tensor]:
    """Slots and attention as the definitions say, with every tensor of [B, K, H, N]."""
    rules, first, attention = m.rules, slots, x
    slot_mask = masks.get("slot_mask", torch.ones(B, K, dtype=torch.bool))[:, :, None, None]
    input_mask = masks.get("input_mask", torch.ones(B, N, dtype=torch.bool))[:, None, None].to(x)
    x = x if m.norm_inputs is None else m.norm_inputs(x)
    k, v = (y.unflatten(2, (rules.heads, -1)) for y in (m.key(x), m.value(x)))
    for i in range(T):
        if rules.gradient != "full":
            slots = slots.detach()
        if rules.gradient == "bilevel" and i == T - 1:
            slots = slots + first - first.detach()
        normed = slots if m.norm_slots is None else m.norm_slots(slots)
        q = m.query(normed).unflatten(2, (rules.heads, -1)) * rules.scale
        logits = torch.einsum("bkhd,bnhd->bkhn", q, k)
        odds = logits.exp() * slot_mask
        over = (1, 2) if rules.softmax_over == "slots_heads" else 1
        attention = odds / odds.sum(over, keepdim=True) * input_mask
        weights = attention + (rules.eps if rules.eps_in == "weights" else 0) * input_mask
        weights = weights * slot_mask
        if rules.update == "mean":
            total = weights.sum(3, keepdim=True) + (rules.eps if rules.eps_in == "sum" else 0)
            weights = weights / total.where(total > 0, 1)
        update = torch.einsum("bkhn,bnhe->bkhe", weights, v).flatten(2)
        update = update if m.combine is None else m.combine(update)
        state = normed if rules.gru_state == "normalised" else slots
        if m.gru is None:
            slots = state + update
        else:
            slots = m.gru(update.flatten(0, 1), state.flatten(0, 1)).view_as(state)
        if m.mlp is not None:
            slots = slots + m.mlp(m.norm_mlp(slots))
    return [slots, attention[:, :, 0] if rules.heads == 1 else attention]


def drawn(masked: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    masks = {}
    if masked in ("slots", "both"):
        masks["slot_mask"] = torch.tensor([[True, False, True], [True, True, True]])
    if masked in ("inputs", "both"):
        masks["input_mask"] = torch.arange(N).expand(B, N) < torch.tensor([[4], [N]])
    x, slots = (torch.randn(B, *size, dtype=torch.float64) for size in ((N, C), (K, D)))
    return x.requires_grad_(), slots.requires_grad_(), masks


def gradients(results: list[Tensor], m: SlotAttention, *leaves: Tensor) -> list[Tensor]:
    loss = sum((y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum() for y in results)
    found = torch.autograd.grad(loss, [*leaves, *m.parameters()], allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


def assert_alike(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        if one.shape == other.shape:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10, check_dtype=False)
        else:
            assert one.count_nonzero() == other.count_nonzero() == 0


@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_what_its_definition_says(variant: str, masked: str) -> None:
    m, (x, slots, masks) = module(initial_slots="given", **VARIANTS[variant]), drawn(masked)
    found = [*m(x, slots, iterations=T, return_attention=True, **masks)]
    expected = plain(m, x, slots, masks)
    assert_alike(found, expected)
    assert_alike(gradients(found, m, x, slots), gradients(expected, m, x, slots))
    with torch.no_grad():
        without = m(x, slots, return_attention=True, **masks)
    assert_alike([*without], expected)
    assert_alike([m(x, slots, **masks)], expected[:1])


def test_masked_inputs_may_hold_anything() -> None:
    m, (x, slots, masks) = module(initial_slots="given"), drawn("inputs")
    expected = m(x, slots, **masks)
    y = x.detach().masked_fill(~masks["input_mask"][..., None], 1e9)
    torch.testing.assert_close(m(y, slots, **masks), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("variant", [*VARIANTS])
def test_an_image_without_slots_gets_no_update_and_disturbs_no_other(variant: str) -> None:
    m, (x, slots, _) = module(initial_slots="given", **VARIANTS[variant]), drawn("none")
    mask = torch.tensor([[False] * K, [True, False, True]])
    result = m(x, slots, slot_mask=mask)
    assert result.isfinite().all()
    alone = m(x[1:], slots[1:], slot_mask=mask[1:])
    found = torch.autograd.grad(result[1].sum(), [*m.parameters()], allow_unused=True)
    expected = torch.autograd.grad(alone.sum(), [*m.parameters()], allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("layers", ["absorbed", "dense"])
def test_projections_are_absorbed_where_that_is_less_work(
    layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    m = SlotAttention(dim=8, num_slots=3)
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, x: called.append(self) or x @ self.weight.mT
    )
    inputs = 40 if layers == "absorbed" else 2
    m(torch.randn(1, inputs, 8))
    assert (m.key in called) == (layers == "dense")


def test_own_initial_slots() -> None:
    sampled = SlotAttention(dim=D, num_slots=4)
    x = torch.randn(B, N, D)
    one, other = (sampled(x, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.equal(other)
    assert one.shape == (B, 4, D)
    assert sampled(x, num_slots=6, iterations=1).shape == (B, 6, D)
    learned = SlotAttention(dim=D, num_slots=4, initial_slots="learned")
    torch.testing.assert_close(learned(x), learned(x, learned.initial.slots.expand(B, -1, -1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads: expected a divisor of 8, got 3"),
        ({"softmax_over": "pixels"}, "softmax_over: expected one of slots, slots_heads"),
        ({"gradient": "half"}, "gradient: expected one of full, implicit, bilevel, got 'half'"),
        ({"initial_slots": "none"}, "initial_slots: expected one of sampled, learned, given"),
        ({"initial_slots": "learned"}, "num_slots: learned slots have a number, got None"),
        ({"recurrent": False, "projected": 4}, "has the slots' width 8, got 4"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlotAttention(dim=8, **options)


def test_impossible_calls() -> None:
    m = SlotAttention(dim=8)
    with pytest.raises(ValueError, match="expected slots or num_slots, got neither"):
        m(torch.randn(1, 4, 8))
    with pytest.raises(ValueError, match="iterations: expected a whole number >= 1, got 0"):
        m(torch.randn(1, 4, 8), num_slots=2, iterations=0)
    for wrong, got in ((torch.randn(4, 8), r"\[4, 8\]"), ([[1.0]], "list")):
        with pytest.raises(ValueError, match=rf"inputs: expected a tensor \[B, N, 8\], got {got}"):
            m(wrong, num_slots=2)
    with pytest.raises(ValueError, match=r"inputs: expected at least one, got \[1, 0, 8\]"):
        m(torch.randn(1, 0, 8), num_slots=2)
    with pytest.raises(ValueError, match="num_slots: expected a whole number >= 1, got -1"):
        m(torch.randn(1, 4, 8), num_slots=-1)
    with pytest.raises(TypeError, match="positional"):
        SlotAttention(7, 64)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"input_mask": torch.ones(2, 5)},
            r"input_mask: expected bool \[2, 5\], got torch.float32",
        ),
        ({"slot_mask": torch.ones(2, 4, dtype=torch.bool)}, r"slot_mask: expected bool \[2, 3\]"),
        (
            {"input_mask": torch.tensor([[True] * 5, [False] * 5])},
            "input_mask: expected an input that counts in every image, got none in image 1",
        ),
    ],
)
def test_masks_that_do_not_fit_are_named(masks: dict, message: str) -> None:
    attention = SlotAttention(dim=4, num_slots=3)
    with pytest.raises(ValueError, match=message):
        attention(torch.randn(2, 5, 4), **masks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 2.5}, "dim: expected a whole number, got 2.5"),
        ({"dim": 0}, "dim: expected at least 1, got 0"),
        ({"input_dim": -3}, "input_dim: expected at least 1, got -3"),
        ({"hidden": 0}, "hidden: expected at least 1, got 0"),
        ({"projected": True}, "projected: expected a whole number or null, got true"),
        ({"heads": "2"}, "heads: expected a whole number, got '2'"),
        ({"heads": 0}, "heads: expected at least 1, got 0"),
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
        ({"num_slots": 0}, "num_slots: expected at least 1, got 0"),
        ({"eps": -1e-8}, "eps: expected at least 0, got -1e-08"),
        ({"scale": float("nan")}, "scale: expected a number, got nan"),
        ({"norm_eps": float("inf")}, "norm_eps: expected a number, got inf"),
        ({"gain": None}, "gain: expected a number, got null"),
    ],
)
def test_numbers_of_the_constructor_are_held(options, message):
    with pytest.raises(ValueError, match=f"^slot attention: {message}$"):
        SlotAttention(**{"dim": D, "num_slots": K, **options})


@pytest.mark.parametrize(
    "flag", ["recurrent", "bias", "combine_heads", "norm_inputs", "norm_slots"]
)
@pytest.mark.parametrize("value", ["no", 1, None])
def test_flags_are_true_or_false(flag, value):
    message = f"^slot attention: {flag}: expected True or False, got {value!r}$"
    with pytest.raises(ValueError, match=message):
        SlotAttention(**{"dim": D, "num_slots": K, flag: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_slots": True}, "num_slots: expected a whole number >= 1, got True"),
        ({"num_slots": 2.5}, "num_slots: expected a whole number >= 1, got 2.5"),
        ({"num_slots": "3"}, "num_slots: expected a whole number >= 1, got '3'"),
        ({"iterations": True}, "iterations: expected a whole number >= 1, got True"),
        ({"iterations": 2.5}, "iterations: expected a whole number >= 1, got 2.5"),
        ({"iterations": "3"}, "iterations: expected a whole number >= 1, got '3'"),
        ({"return_attention": "no"}, "return_attention: expected True or False, got 'no'"),
        ({"generator": 5}, "generator: expected a torch.Generator or None, got 5"),
        ({"num_slots": K + 1}, f"num_slots: expected that of slots, {K}, got {K + 1}"),
        ({"slot_mask": [[True] * K] * B}, rf"slot_mask: expected bool \[{B}, {K}\], got list"),
        (
            {"input_mask": torch.ones(B, N + 1, dtype=torch.bool)},
            rf"input_mask: expected bool \[{B}, {N}\], got \[{B}, {N + 1}\]",
        ),
        (
            {"input_mask": torch.tensor(True)},
            rf"input_mask: expected bool \[{B}, {N}\], got \[\]",
        ),
        *(
            (
                {name: torch.zeros(shape, dtype=dtype)},
                f"{name}: expected torch.float64, got {dtype}",
            )
            for name, shape in (("inputs", (B, N, C)), ("slots", (B, K, D)))
            for dtype in (torch.int64, torch.bool, torch.float32)
        ),
    ],
)
def test_what_a_call_does_not_take_is_one_line(options, message):
    attend = module(num_slots=K)
    given = {
        "inputs": torch.zeros(B, N, C, dtype=torch.float64),
        "slots": torch.zeros(B, K, D, dtype=torch.float64),
    }
    with pytest.raises(ValueError, match=f"^slot attention: {message}$"):
        attend(**given | options)


def test_inputs_and_slots_of_another_shape_are_refused():
    attend = module(num_slots=K)
    x = torch.zeros(B, N, C, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"inputs: expected a tensor \[B, N, 6\], got \[2, 11, 5\]$"
    ):
        attend(x[..., :5])
    for slots in (x[:, :3], x.new_zeros(1, K, D), x.new_zeros(B, D)):
        got = ", ".join(map(str, slots.shape))
        with pytest.raises(
            ValueError, match=rf"slots: expected a tensor \[2, K, 8\], got \[{got}\]$"
        ):
            attend(x, slots)
