"""Every class of `emorl.compat`: its options after construction, and the keyword `backend`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import emorl.compat

B, N, K, D = 2, 6, 3, 8
X, SLOTS = torch.randn(B, N, D), torch.randn(B, K, D)
IMAGES = torch.rand(1, 3, 16, 16)
Call = Callable[[nn.Module], Any]


def of_inputs(module: nn.Module) -> Any:
    return module(X)


def of_inputs_and_slots(module: nn.Module) -> Any:
    return module(X, SLOTS)


@dataclass
class Case:
    """A class, by its constructor's arguments and a call.

    Attributes:
        arguments: the constructor's.
        call: of the module.
        assigned: other values of options, by name; what forward gives is then that of a module
            made with them.
        fixed: options whose assignment raises an AttributeError.
        read: attributes that the originals' forward does not read either, or ours need not.
        operators: whether there are operators in it, which have backends.
    """

    arguments: dict[str, Any]
    call: Call = of_inputs
    assigned: dict[str, Any] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    operators: bool = True


def inner() -> nn.Module:
    return importlib.import_module("emorl.compat.lucidrains").SlotAttention(K, D)


PLAIN = {"num_slots": K, "dim": D}
OWN = {"iters": 2, "eps": 0.3, "num_slots": 4, "backend": "reference"}
CONDITIONS = {"object_dim": D, "n_slots": K}
SLATE = {"num_iterations": 3, "num_slots": K, "slot_size": D, "mlp_hidden_size": 8}
CASES: dict[str, Case] = {
    "lucidrains.SlotAttention": Case(PLAIN, assigned=OWN, read=("dim",)),
    "lucidrains.MultiHeadSlotAttention": Case(
        {**PLAIN, "heads": 2, "dim_head": 4}, assigned=OWN, read=("dim",)
    ),
    "lucidrains.SlotAttentionExperimental": Case(PLAIN, assigned={"iters": 2, "num_slots": 4}),
    "lucidrains.AdaptiveSlotWrapper": Case(
        {"slot_attn": inner()}, assigned={"temperature": 0.1}, read=("slot_attn",), operators=False
    ),
    "lucidrains.OrthoSlotWrapper": Case(
        {"slot_attention": inner()}, read=("slot_attention",), operators=False
    ),
    "lucidrains.MetaSlotAttention": Case(
        {"slot_attention": inner()}, read=("slot_attention",), operators=False
    ),
    "evelinehong.SlotAttention": Case(PLAIN, assigned=OWN),
    "evelinehong.SoftPositionEmbed": Case(
        {"hidden_size": D, "resolution": (2, 3)},
        lambda m: m(X.view(B, 2, 3, D)),
        operators=False,
    ),
    "evelinehong.Encoder": Case(
        {"resolution": (16, 16), "hid_dim": D},
        lambda m: m(IMAGES),
        assigned={"backend": "reference"},
    ),
    "evelinehong.Decoder": Case(
        {"resolution": (16, 16), "hid_dim": D},
        lambda m: m(SLOTS[0, :, None, None].expand(-1, 8, 8, -1)),
        assigned={"resolution": (9, 10), "backend": "reference"},
    ),
    "evelinehong.SlotAttentionAutoEncoder": Case(
        {"resolution": (16, 16), "num_slots": K, "num_iterations": 2, "hid_dim": D},
        lambda m: m(IMAGES),
        read=("resolution", "num_slots", "num_iterations", "hid_dim"),
    ),
    "ocl.SlotAttention": Case(
        {"dim": D, "feature_dim": D, "n_heads": 2, "kvq_dim": D},
        of_inputs_and_slots,
        assigned={
            "iters": 2,
            "eps": 0.3,
            "use_implicit_differentiation": True,
            "backend": "reference",
        },
        fixed=("n_heads", "kvq_dim", "dims_per_head"),
        read=("dim", "ff_mlp"),
    ),
    "ocl.SlotAttentionGrouping": Case(
        {"feature_dim": D, "object_dim": D},
        lambda m: m(SimpleNamespace(features=X), SLOTS),
        read=("object_dim", "positional_embedding"),
    ),
    "ocl.RandomConditioning": Case(
        CONDITIONS,
        lambda m: m(B),
        assigned={"n_slots": 5},
        read=("object_dim",),
        operators=False,
    ),
    "ocl.SlotwiseLearntConditioning": Case(
        CONDITIONS, lambda m: m(B), read=("object_dim", "n_slots"), operators=False
    ),
    "ocl.LearntConditioning": Case(
        CONDITIONS, lambda m: m(B), read=("object_dim", "n_slots"), operators=False
    ),
    "slate.SlotAttention": Case(
        {**SLATE, "input_size": D, "heads": 2},
        of_inputs_and_slots,
        assigned={"num_iterations": 2, "epsilon": 0.3, "backend": "reference"},
        fixed=("num_heads", "slot_size"),
        read=("num_slots", "input_size"),
    ),
    "slate.SlotAttentionEncoder": Case(
        {**SLATE, "input_channels": D, "pos_channels": 4, "num_heads": 2},
        assigned={"num_slots": 4},
        read=("slot_size", "pos_channels"),
    ),
    "videosaur.SlotAttention": Case(
        {"inp_dim": D, "slot_dim": D},
        lambda m: m(SLOTS, X),
        assigned={"n_iters": 2, "eps": 0.3, "backend": "reference"},
    ),
    "genera1z.SlotAttention": Case(
        {"num_iter": 3, "embed_dim": D, "ffn_dim": 8},
        of_inputs_and_slots,
        assigned={"num_iter": 2, "trunc_bp": "bi-level", "backend": "reference"},
    ),
}


def classes() -> dict[str, type[nn.Module]]:
    """Every public module class, by its name."""
    found = {}
    for part in pkgutil.iter_modules(emorl.compat.__path__):
        package = importlib.import_module(f"emorl.compat.{part.name}")
        for name, value in vars(package).items():
            own = inspect.isclass(value) and value.__module__ == package.__name__
            if own and issubclass(value, nn.Module) and not name.startswith("_"):
                found[f"{part.name}.{name}"] = value
    return {name: found[name] for name in sorted(found) if name != "rules.RuledModule"}


def made(name: str, **changes: Any) -> nn.Module:
    """The module, or a skip where it needs another package."""
    if "Meta" in name and importlib.util.find_spec("vector_quantize_pytorch") is None:
        pytest.skip("vector-quantize-pytorch is not installed")
    torch.manual_seed(0)
    return classes()[name](**{**CASES[name].arguments, **changes})


def results(name: str, module: nn.Module) -> list[Tensor]:
    """What a call gives."""
    torch.manual_seed(1)
    out = CASES[name].call(module)
    out = out.values() if isinstance(out, dict) else [out] if isinstance(out, Tensor) else out
    return [x for x in out if isinstance(x, Tensor)]


def gradients(tensors: list[Tensor], module: nn.Module, **options: bool) -> list[Tensor]:
    """Those of the weights that have one, of a sum of squares."""
    loss = sum(x.square().sum() for x in tensors if x.requires_grad)
    found = torch.autograd.grad(loss, [*module.parameters()], allow_unused=True, **options)
    return [g for g in found if g is not None]


def called(name: str, module: nn.Module) -> list[Tensor]:
    """What a call gives, and the gradients of the weights."""
    found = results(name, module)
    return [*found, *gradients(found, module)]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_every_class_has_a_case() -> None:
    assert [*classes()] == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_every_option_is_known(name: str) -> None:
    """Whatever the constructor takes and the module has: no option can be forgotten here."""
    case, module = CASES[name], made(name)
    options = {x for x in inspect.signature(type(module)).parameters if hasattr(module, x)}
    derived = {"dims_per_head", "num_heads"} & {*dir(module)}
    assert options <= {*case.assigned, *case.fixed, *case.read}
    assert derived <= {*case.fixed, *case.read}


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, case in CASES.items() for option in case.assigned]
)
def test_an_assigned_option_is_that_of_the_constructor(name: str, option: str) -> None:
    case, module = CASES[name], made(name)
    before, value = called(name, module), case.assigned[option]
    expected = called(name, made(name, **{option: value}))
    setattr(module, option, value)
    assert getattr(module, option) == value
    found = called(name, module)
    assert same(found, expected)
    assert option == "backend" or not same(found, before)


@pytest.mark.parametrize("name", [name for name in CASES if hasattr(classes()[name], "scale")])
def test_an_assigned_scale_is_that_of_the_queries(name: str) -> None:
    """Four times the scale is four times the queries' layer, exactly: a power of two."""
    module, other = made(name), made(name)
    for parameter in other.to_q.parameters():
        parameter.data.mul_(4)
    before, expected = results(name, module), results(name, other)
    module.scale *= 4
    found = results(name, module)
    assert same(found, expected)
    assert not same(found, before)


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, case in CASES.items() for option in case.fixed]
)
def test_a_fixed_option_says_so(name: str, option: str) -> None:
    module = made(name)
    with pytest.raises(AttributeError, match=f"^SlotAttention: {option} is the constructor's"):
        setattr(module, option, getattr(module, option))


def test_impossible_values_are_refused() -> None:
    module = made("genera1z.SlotAttention")
    with pytest.raises(ValueError, match="trunc_bp: expected bi-level or None, got full"):
        module.trunc_bp = "full"
    module = made("lucidrains.SlotAttention")
    for scale in (torch.tensor(0.5), torch.nn.Parameter(torch.tensor(0.5))):
        with pytest.raises(ValueError, match="scale: expected a number, got "):
            module.scale = scale


@pytest.mark.parametrize("name", CASES)
def test_constructors_take_a_backend_by_name(name: str) -> None:
    """And what they make of "reference" has second derivatives."""
    parameter = inspect.signature(classes()[name]).parameters.get("backend")
    assert (parameter is not None) == CASES[name].operators
    if parameter is None:
        return
    assert parameter.kind == inspect.Parameter.KEYWORD_ONLY
    assert parameter.default == "auto"
    module = made(name, backend="reference")
    first = gradients(results(name, module), module, create_graph=True)
    assert any(g.count_nonzero() for g in gradients(first, module))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_masks_of_numbers_are_those_of_bools(dtype: torch.dtype) -> None:
    name = "ocl.SlotAttentionGrouping"
    module = made(name, use_empty_slot_for_masked_slots=True)
    mask = torch.tensor([[False, True, False], [False, False, True]])
    found, expected = (
        module(SimpleNamespace(features=X), SLOTS, m) for m in (mask.to(dtype), mask)
    )
    assert found.objects.equal(expected.objects)
    assert found.feature_attributions.equal(expected.feature_attributions)
    assert found.objects[mask].equal(module.empty_slot.expand(2, -1))


@pytest.mark.parametrize("name", ["ocl", "slate", "evelinehong", "genera1z", "videosaur"])
def test_no_iteration_is_refused_in_one_line(name: str) -> None:
    package: Any = importlib.import_module(f"emorl.compat.{name}")
    calls: dict[str, Callable[[], Any]] = {
        "ocl": lambda: package.SlotAttention(D, D, iters=0)(X, SLOTS),
        "slate": lambda: package.SlotAttention(0, K, D, D, 5, 1)(X, SLOTS),
        "evelinehong": lambda: package.SlotAttention(K, D, iters=0)(X),
        "genera1z": lambda: package.SlotAttention(0, D, 8)(X, SLOTS),
        "videosaur": lambda: package.SlotAttention(D, D)(SLOTS, X, n_iters=0),
    }
    with pytest.raises(ValueError, match="iterations: expected at least 1, got 0"):
        calls[name]()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (name, shape, message)
        for name in ("lucidrains", "ocl", "slate", "evelinehong", "genera1z", "videosaur")
        for shape, message in (
            ((B, N, D + 1), r"expected a tensor \[B, N, 8\], got \[2, 6, 9\]$"),
            ((B, 0, D), r"expected at least one, got \[2, 0, 8\]$"),
        )
    ],
)
def test_inputs_that_cannot_be_attended_to_are_one_line(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    package: Any = importlib.import_module(f"emorl.compat.{name}")
    given = torch.zeros(shape)
    calls: dict[str, Callable[[], Any]] = {
        "lucidrains": lambda: package.SlotAttention(K, D)(given),
        "ocl": lambda: package.SlotAttention(D, D)(given, SLOTS),
        "slate": lambda: package.SlotAttention(1, K, D, D, 5, 1)(given, SLOTS),
        "evelinehong": lambda: package.SlotAttention(K, D)(given),
        "genera1z": lambda: package.SlotAttention(1, D, 8)(given, SLOTS),
        "videosaur": lambda: package.SlotAttention(D, D)(SLOTS, given),
    }
    with pytest.raises(ValueError, match="inputs: " + message):
        calls[name]()


@pytest.mark.parametrize("number", [-1, 0, 2.5, True])
def test_slots_that_are_no_number_are_refused(number: Any) -> None:
    """`expand` would take -1 for the one that there is."""
    module = importlib.import_module("emorl.compat.evelinehong").SlotAttention
    for call in (lambda: module(number, D), lambda: module(K, D)(X, num_slots=number)):
        with pytest.raises(ValueError, match=r"^slot attention: num_slots: expected"):
            call()


def test_a_backend_that_is_none_is_refused_at_once() -> None:
    module = importlib.import_module("emorl.compat.lucidrains").SlotAttention
    with pytest.raises(ValueError, match=r"backend: expected one of auto, .* got 'gpu'"):
        module(K, D, backend="gpu")
