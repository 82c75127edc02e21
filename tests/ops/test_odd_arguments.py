"""Odd arguments of every operator: native and reference give the same results or the same line."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from op_testing import slot_iterations
from torch import Tensor

from emorl.ops import (
    Backend,
    backends,
    convolution,
    mixture_nll,
    mixture_nll_and_gradient,
    slot_attention,
    spatial_broadcast,
)


class Operator(NamedTuple):
    """An operator, the dimensions of its tensors by letter, and its other arguments by kind.

    `follows` is the first tensor whose dtype must be that of `x`, where one must.
    """

    call: Callable[..., Any]
    tensors: dict[str, str]
    sizes: dict[str, int]
    needed: Mapping[str, Any] = MappingProxyType({})
    whole: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32", "float64", "bfloat16", "float16")
    follows: str = ""

    @property
    def name(self) -> str:
        return self.call.__name__.removesuffix("_and_gradient")

    def inputs(self, **sizes: int) -> dict[str, Tensor]:
        """The tensors, of these sizes by letter; digits stand for themselves."""
        sizes = {**self.sizes, **sizes}
        shapes = {
            name: [int(x) if x.isdigit() else sizes[x] for x in letters]
            for name, letters in self.tensors.items()
        }
        generator = torch.Generator().manual_seed(0)
        made = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
        return {name: x > 0.3 if name == "slot_mask" else x + 0.1 for name, x in made.items()}

    def answer(self, backend: str, tensors: dict[str, Any], **options: Any) -> Any:
        """The results, or what the error says; only a ValueError may be raised."""
        try:
            found = self.call(**tensors, **self.needed, **options, backend=backend)
        except ValueError as error:
            return str(error)
        return found if isinstance(found, tuple) else (found,)


_IMAGES = {"B": 2, "K": 3, "C": 3, "D": 4, "H": 4, "W": 5}
_LIKELIHOOD = {"flags": ("density",), "names": ("kind", "rgb_activation")}
OPERATORS = {
    "slot_attention": Operator(
        slot_attention,
        {"q": "BKD", "k": "BND", "v": "BNE", "logit_bias": "BK", "slot_mask": "BK"},
        {"B": 2, "K": 3, "N": 5, "D": 4, "E": 6},
        whole=("heads",),
        numbers=("eps",),
        flags=("return_attention",),
        names=("softmax_over",),
        optional=("logit_bias", "slot_mask"),
    ),
    "mixture_nll": Operator(
        mixture_nll,
        {"image": "BCHW", "rgb": "BKCHW", "mask_logits": "BK1HW"},
        _IMAGES,
        needed={"sigma": 0.3},
        numbers=("sigma",),
        **_LIKELIHOOD,
    ),
    "mixture_nll, a sigma a slot": Operator(
        mixture_nll,
        {"image": "BCHW", "rgb": "BKCHW", "mask_logits": "BK1HW", "sigma": "K"},
        _IMAGES,
        **_LIKELIHOOD,
    ),
    "mixture_nll, joined": Operator(
        mixture_nll,
        {"image": "BCHW", "rgb": "BKDHW"},
        _IMAGES,
        needed={"mask_logits": None, "sigma": 0.3},
        **_LIKELIHOOD,
    ),
    "mixture_nll_and_gradient": Operator(
        mixture_nll_and_gradient,
        {"image": "BCHW", "decoded": "BKDHW"},
        _IMAGES,
        needed={"sigma": 0.3, "scale": 0.5},
        numbers=("sigma", "scale"),
        **_LIKELIHOOD,
    ),
    "spatial_broadcast": Operator(
        spatial_broadcast,
        {"slot": "MC", "position": "CHW"},
        {"M": 2, "C": 8, "H": 4, "W": 5},
        names=("activation",),
    ),
    "spatial_broadcast, with a border": Operator(
        spatial_broadcast,
        {"slot": "MC33", "position": "CHW"},
        {"M": 2, "C": 8, "H": 4, "W": 5},
        names=("activation",),
    ),
    "convolution": Operator(
        convolution,
        {"x": "BCHW", "weight": "Dckk", "bias": "D"},
        {"B": 2, "C": 32, "c": 32, "D": 32, "H": 6, "W": 5, "k": 3},
        whole=("padding", "stride"),
        names=("activation",),
        optional=("bias",),
        follows="weight",
    ),
    "slot_iterations, its weights apart": Operator(
        slot_iterations,
        {
            "x": "BNC",
            "slots": "BKD",
            "norm_weight": "D",
            "norm_bias": "D",
            "query": "QD",
            "query_bias": "Q",
            "key": "QC",
            "logit": "D",
            "value": "EC",
            "weight_ih": "GE",
            "weight_hh": "GD",
            "bias_ih": "G",
            "bias_hh": "G",
            "mlp_norm_weight": "D",
            "mlp_norm_bias": "D",
            "weight_in": "HD",
            "bias_in": "H",
            "weight_out": "DH",
            "bias_out": "D",
        },
        {"B": 2, "N": 5, "C": 4, "K": 3, "D": 6, "Q": 4, "E": 4, "G": 18, "H": 7},
        whole=("iterations",),
        numbers=("eps", "norm_eps", "mlp_norm_eps"),
        optional=("query_bias", "key", "logit", "value"),
        dtypes=("float32", "float64"),
        follows="slots",
    ),
}
ARGUMENTS = [(operator, name) for operator, op in OPERATORS.items() for name in op.tensors]
VALUES = {
    "whole": (True, 1.0, float("nan"), "1", None, -1, 2**63, [1], (1, 1), torch.tensor(1)),
    "numbers": (True, "1", None, float("nan"), float("inf"), 10**400, [1], torch.tensor([1, 2])),
    "flags": (1, 0.0, "yes", None, [True], torch.tensor(True)),
    "names": (1, None, True, "x", ["elu"]),
}
OTHER_DTYPES = (torch.bool, torch.uint8, torch.int64, torch.complex64, torch.float8_e4m3fn)


def same_answer(operator: Operator, tensors: dict[str, Any], **options: Any) -> Any:
    """What the reference answers, and so do `auto` and, where there are any, native kernels."""
    expected = operator.answer("reference", tensors, **options)
    native = [] if backends()[operator.name]["native"] else ["native"]
    for backend in ["auto", *native]:
        found = operator.answer(backend, tensors, **options)
        assert type(found) is type(expected), (backend, found, expected)
        if isinstance(expected, str):
            assert found == expected
        else:
            compare(found, expected)
    return expected


def compare(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Half of the digits agree: what is missing or elsewhere is wrong by more, rounding by less."""
    for one, other in zip(found, expected, strict=True):
        largest = other.nan_to_num().abs().max().item() if other.numel() else 0.0
        allowed = torch.finfo(other.dtype).eps ** 0.5 * largest
        torch.testing.assert_close(one, other, rtol=0, atol=allowed, equal_nan=True)


def refused(operator: Operator, argument: str, line: str, tensors: Any, **options: Any) -> None:
    """Every backend refuses the argument with this line."""
    answer = same_answer(operator, tensors, **options)
    names = ("decoded", "rgb") if argument == "decoded" else (argument,)  # rgb is a part of it
    assert answer in [f"{operator.name}: {name}: {line}" for name in names]


def test_every_argument_has_its_odd_values() -> None:
    for name, operator in OPERATORS.items():
        listed = {*operator.tensors, *operator.needed}
        for kind in VALUES:
            listed |= {*getattr(operator, kind)}
        if "," not in name:
            assert {*inspect.signature(operator.call).parameters} - listed == {"backend"}
    assert set(get_args(Backend)) == {"auto", "native", "triton", "reference"}


@pytest.mark.parametrize(("operator", "argument"), ARGUMENTS)
@pytest.mark.parametrize("odd", [[1.0], 1.0, "x", np.ones(3), None], ids=lambda x: type(x).__name__)
def test_what_is_no_tensor(operator: str, argument: str, odd: Any) -> None:
    op = OPERATORS[operator]
    tensors = {**op.inputs(), argument: odd}
    answer = same_answer(op, tensors)
    if (odd is None and argument in op.optional) or (
        argument == "sigma" and isinstance(odd, float)
    ):
        assert not isinstance(answer, str)
    elif argument == "sigma":
        assert answer == f"mixture_nll: sigma: expected a number > 0, got {odd!r}"
    elif odd is None and argument == "mask_logits":  # then the last channel of rgb is
        assert answer.startswith("mixture_nll: expected image [B,C,H,W]")
    else:
        refused(op, argument, f"expected a tensor, got {type(odd).__name__}", tensors)


@pytest.mark.parametrize(("operator", "argument"), ARGUMENTS)
def test_what_is_no_dense_tensor(operator: str, argument: str) -> None:
    op = OPERATORS[operator]
    tensors = op.inputs()
    for odd, kind in (
        (tensors[argument].to_sparse(), "sparse_coo"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
    ):
        line = f"expected a dense tensor, got a {kind} one"
        refused(op, argument, line, {**tensors, argument: odd})


@pytest.mark.parametrize(("operator", "argument"), ARGUMENTS)
@pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
def test_dtypes_without_a_meaning(operator: str, argument: str, dtype: torch.dtype) -> None:
    op = OPERATORS[operator]
    tensors = op.inputs()
    tensors[argument] = tensors[argument].to(dtype)
    name = str(dtype).removeprefix("torch.")
    if argument != "slot_mask":
        refused(op, argument, f"expected {', '.join(op.dtypes)}, got {name}", tensors)
    elif dtype != torch.bool:
        refused(op, argument, f"expected torch.bool, got {dtype}", tensors)


@pytest.mark.parametrize(("operator", "argument"), ARGUMENTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_one_tensor_of_another_dtype(operator: str, argument: str, dtype: torch.dtype) -> None:
    """What PyTorch refuses is refused; the others compute in the wider dtype."""
    op = OPERATORS[operator]
    tensors = op.inputs()
    if argument == "slot_mask":
        return
    tensors[argument] = tensors[argument].to(dtype)
    name = str(dtype).removeprefix("torch.")
    if not op.follows:
        assert not isinstance(same_answer(op, tensors), str)
    elif name not in op.dtypes:
        refused(op, argument, f"expected {', '.join(op.dtypes)}, got {name}", tensors)
    elif argument == "x":
        refused(op, op.follows, f"expected {name}, got float32", tensors)
    else:
        refused(op, argument, f"expected float32, got {name}", tensors)


@pytest.mark.parametrize(
    ("operator", "argument", "kind"),
    [
        (operator, argument, kind)
        for operator, op in OPERATORS.items()
        for kind in VALUES
        for argument in getattr(op, kind)
    ],
)
def test_odd_options(operator: str, argument: str, kind: str) -> None:
    op = OPERATORS[operator]
    op = op._replace(needed={k: v for k, v in op.needed.items() if k != argument})
    for value in VALUES[kind]:
        answer = same_answer(op, op.inputs(), **{argument: value})
        assert isinstance(answer, str), f"{argument}={value!r} gave results"
        assert answer.startswith(f"{op.name}: {argument}: expected "), value
        assert "\n" not in answer


@pytest.mark.parametrize(
    ("operator", "letter"),
    [(o, x) for o, op in OPERATORS.items() for x in op.sizes if o != "convolution"],
)
def test_a_size_of_none(operator: str, letter: str) -> None:
    op = OPERATORS[operator]
    same_answer(op, op.inputs(**{letter: 0}))


@pytest.mark.parametrize("size", [*itertools.product((0, 1, 2, 5), repeat=2)], ids=str)
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_small_images_are_convolved_or_refused(size: tuple[int, int], padding: int) -> None:
    op = OPERATORS["convolution"]
    tensors = op.inputs(H=size[0], W=size[1])
    least = max(1, 3 - 2 * padding)
    if min(size) < least:
        line = f"expected an image of at least {least} pixels a side, got {[2, 32, *size]}"
        assert same_answer(op, tensors, padding=padding) == f"convolution: {line}"
    else:
        (output,) = same_answer(op, tensors, padding=padding)
        assert output.shape == (2, 32, *(side + 2 * padding - 2 for side in size))


@pytest.mark.parametrize("letters", [("C", "c"), ("D",), ("k",)])
def test_a_convolution_without_channels_or_kernel(letters: tuple[str, ...]) -> None:
    op = OPERATORS["convolution"]
    tensors = op.inputs(**dict.fromkeys(letters, 0))
    shape = list(tensors["weight"].shape)
    refused(op, "weight", f"expected channels and a kernel, got {shape}", tensors)


def test_a_convolution_of_no_images() -> None:
    op = OPERATORS["convolution"]
    assert same_answer(op, op.inputs(B=0), padding=1)[0].shape == (0, 32, 6, 5)


def test_autocast_gives_a_convolution_one_dtype() -> None:
    """Outside, arguments of several are refused: autocast converts all but float64."""
    tensors = OPERATORS["convolution"].inputs()
    mixed = {**tensors, "bias": tensors["bias"].bfloat16()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert convolution(**mixed).dtype == torch.bfloat16
        with pytest.raises(ValueError, match="bias: expected bfloat16, got float64"):
            convolution(**{**tensors, "bias": tensors["bias"].double()})
