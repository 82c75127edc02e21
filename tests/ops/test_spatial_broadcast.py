"""Spatial broadcast against its plain reference: numbers, gradients, memory layout."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_testing import (  # noqa: F401
    DEVICE,
    backend_params,
    unwritten_outputs_are_nan,
)
from torch import Tensor

from emorl.bench.accuracy import assert_as_accurate_as_plain
from emorl.bench.cases.spatial_broadcast import SPATIAL_BROADCAST, SpatialBroadcastCase
from emorl.bench.ops.forms import check, function_of
from emorl.bench.ops.operators import BOTH, call
from emorl.ops import backends, spatial_broadcast

BACKENDS = backend_params("spatial_broadcast")
KERNELS = [param for param in BACKENDS if param.values[0] != "reference"]
OBSTACLES = backends(DEVICE)["spatial_broadcast"]
AVAILABLE = [name for name, reason in OBSTACLES.items() if reason is None]
needs_native = pytest.mark.skipif(OBSTACLES["native"] is not None, reason=str(OBSTACLES["native"]))
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
INTERPRETED = DEVICE == "cpu"
TRITON = (
    [SPATIAL_BROADCAST[i] for i in (0, 2, 4, 9, 13, 15, 16)] if INTERPRETED else SPATIAL_BROADCAST
)
SMALL = SpatialBroadcastCase(2, 3, 4, 3)
SMALL_BORDER = SpatialBroadcastCase(2, 3, 4, 3, border_classes=True)


@pytest.fixture(autouse=True)
def border_classes_are_rarely_interpreted(request: pytest.FixtureRequest) -> None:
    """Triton's interpreter takes seconds for nine classes; `test_triton_...` has a case of them."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    case = parameters.get("case")
    border = parameters.get("border_classes") or getattr(case, "border_classes", False)
    unless = request.node.name.startswith("test_triton")
    if INTERPRETED and border and parameters.get("backend") == "triton" and not unless:
        pytest.skip("slow in Triton's interpreter; test_triton_is_as_accurate_as_plain covers it")


def weights_of(output: Tensor) -> Tensor:
    """Different weights, in the output's memory layout, that every dtype holds exactly."""
    values = (torch.arange(output.numel(), device=output.device) % 17 - 8).view(output.shape) / 8
    return torch.empty_like(output).copy_(values)


def outputs_and_gradients(
    inputs: dict[str, Tensor], backend: str, activation: str = "elu"
) -> dict[str, Tensor]:
    """The output, and the gradient of its weighted sum for both inputs."""
    output = spatial_broadcast(**inputs, activation=activation, backend=backend)  # type: ignore[arg-type]
    grads = torch.autograd.grad(output, list(inputs.values()), weights_of(output))
    named = {f"grad_{name}": grad for name, grad in zip(inputs, grads, strict=True)}
    return {"output": output.detach(), **named}


def roundings(inputs: dict[str, Tensor], output: Tensor) -> dict[str, float]:
    """For `assert_as_accurate_as_plain`.

    The argument of the activation is rounded once; the activation, and its slope, are good to 2
    eps, which is 4 units. Sums of n terms add sqrt(n) units of the sum of their absolute values: n
    errors of random sign. So do the slopes' errors, which come from the output as it is stored.
    """
    dtype = inputs["slot"].dtype
    wide = torch.promote_types(dtype, torch.float32)
    stored = torch.finfo(dtype).eps / torch.finfo(wide).eps  # units
    argument = sum(x.detach().double().abs().max().item() for x in inputs.values() if x.numel())
    weights = weights_of(output).double().abs()
    allowed = {"output": argument + 4 * argument}
    for name, dims in {"grad_slot": (2, 3), "grad_position": (0,)}.items():
        terms, squares = weights.sum(dims), weights.square().sum(dims)
        if terms.numel():
            each = argument + 4 + (weights.numel() / terms.numel()) ** 0.5
            allowed[name] = each * terms.max().item() + stored * squares.max().item() ** 0.5
    return allowed


def assert_right(inputs: dict[str, Tensor], backend: str, activation: str) -> None:
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    truth = outputs_and_gradients(wide, "reference", activation)
    actual = outputs_and_gradients(inputs, backend, activation)
    for name, x in actual.items():
        assert x.dtype == inputs["slot"].dtype, name
    plain = outputs_and_gradients(inputs, "reference", activation)
    assert_as_accurate_as_plain(actual, plain, truth, roundings(inputs, truth["output"]))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SPATIAL_BROADCAST, ids=str)
def test_native_is_as_accurate_as_plain(case: SpatialBroadcastCase, dtype: str) -> None:
    assert_right(case.inputs(DTYPES[dtype], DEVICE), "native", case.activation)


@needs_native
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("border_classes", [False, True], ids=["vector", "border"])
def test_native_sums_many_slots_as_accurately(border_classes: bool, channels_last: bool) -> None:
    """Terms of one sign, added one after the other, would be wrong by several times plain's error.

    The benchmark's check is the tighter one: weights of both signs keep the sums small.
    """
    case = SpatialBroadcastCase(
        500, 16, 21, 32, border_classes=border_classes, channels_last=channels_last
    )
    inputs = case.inputs(device=DEVICE)
    results = call(function_of("native", "spatial_broadcast", case), inputs, BOTH)
    check(results, "spatial_broadcast", case, inputs, BOTH)


@pytest.mark.parametrize("backend", [param for param in KERNELS if param.values[0] == "triton"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("case", TRITON, ids=str)
def test_triton_is_as_accurate_as_plain(
    case: SpatialBroadcastCase, dtype: str, backend: str
) -> None:
    assert_right(case.inputs(DTYPES[dtype], DEVICE), backend, case.activation)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("border_classes", [False, True], ids=["vector", "border"])
def test_against_a_loop(border_classes: bool, backend: str) -> None:
    case = SpatialBroadcastCase(2, 3, 4, 5, border_classes=border_classes)
    inputs = case.inputs(torch.float64, DEVICE)
    slot, position = inputs["slot"].detach(), inputs["position"].detach()
    output = spatial_broadcast(slot, position, backend=backend)  # type: ignore[arg-type]
    for m, c, h, w in itertools.product(range(2), range(3), range(4), range(5)):
        row, column = (0 if h == 0 else 2 if h == 3 else 1), (0 if w == 0 else 2 if w == 4 else 1)
        addend = slot[m, c, row, column] if border_classes else slot[m, c]
        x = addend + position[c, h, w]
        torch.testing.assert_close(output[m, c, h, w], x if x > 0 else torch.expm1(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kernel", "padding"), [(5, 1), (3, 0)], ids=["5x5-padded", "3x3"])
def test_equals_convolving_the_broadcast_image(kernel: int, padding: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)

    slots, positions = normal(4, 6), normal(6, 9, 8)
    weight, bias = normal(7, 6, kernel, kernel), normal(7)
    image = slots[:, :, None, None] + positions
    expected = F.elu(F.conv2d(image, weight, bias, padding=padding))
    position = F.conv2d(positions[None], weight, bias, padding=padding)[0]
    smallest = 5 if padding else kernel  # has every border class
    constant = slots[:, :, None, None].expand(-1, -1, smallest, smallest)
    slot = F.conv2d(constant, weight, padding=padding)
    slot = slot if padding else slot[:, :, 0, 0]
    actual = spatial_broadcast(slot, position, backend=backend)  # type: ignore[arg-type]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["elu", "none"])
@pytest.mark.parametrize("case", [SMALL, SMALL_BORDER], ids=str)
def test_gradcheck(case: SpatialBroadcastCase, activation: str, backend: str) -> None:
    inputs = case.inputs(torch.float64, DEVICE)

    def output(slot: Tensor, position: Tensor) -> Tensor:
        return spatial_broadcast(slot, position, activation=activation, backend=backend)  # type: ignore[arg-type]

    fast = backend == "triton" and INTERPRETED
    assert torch.autograd.gradcheck(output, tuple(inputs.values()), fast_mode=fast)


def views(
    layout: str, border_classes: bool, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Slots and positions that are views of larger tensors."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    slot = normal(3, 2 * 8, 3, 3)[:, ::2] if border_classes else normal(8, 3).mT
    position = {
        "last-sliced": lambda: normal(11, 13, 8).permute(2, 0, 1)[:, 1:8, :9],
        "first-sliced": lambda: normal(8, 11, 13)[:, 1:8, ::2][..., :5],
        "transposed": lambda: normal(9, 7, 8).permute(2, 1, 0),
        "expanded": lambda: normal(8, 1, 1).expand(8, 7, 9),
        "one-channel-expanded": lambda: normal(1, 7, 9).expand(8, 7, 9),
    }[layout]()
    return {"slot": slot.requires_grad_(), "position": position.detach().requires_grad_()}


LAYOUTS = ["last-sliced", "first-sliced", "transposed", "expanded", "one-channel-expanded"]


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("border_classes", [False, True], ids=["vector", "border"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_inputs(layout: str, border_classes: bool, backend: str) -> None:
    inputs = views(layout, border_classes)
    assert_right(inputs, backend, "elu")
    output = spatial_broadcast(**inputs, backend=backend)  # type: ignore[arg-type]
    channels_last = layout in ("last-sliced", "transposed", "expanded")
    assert output.is_contiguous() != channels_last
    assert output.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("border_classes", [False, True], ids=["vector", "border"])
def test_output_is_laid_out_as_the_positions(
    border_classes: bool, channels_last: bool, backend: str
) -> None:
    case = SpatialBroadcastCase(
        2, 4, 5, 3, border_classes=border_classes, channels_last=channels_last
    )
    output = spatial_broadcast(**case.inputs(device=DEVICE), backend=backend)  # type: ignore[arg-type]
    assert output.stride() == ((60, 1, 12, 4) if channels_last else (60, 15, 3, 1))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
def test_gradients_of_any_layout(channels_last: bool, backend: str) -> None:
    case = SpatialBroadcastCase(2, 8, 5, 3, channels_last=channels_last)
    inputs = case.inputs(device=DEVICE)
    leaves = list(inputs.values())
    output = spatial_broadcast(**inputs, backend=backend)  # type: ignore[arg-type]
    plain = spatial_broadcast(**inputs, backend="reference")
    other = torch.contiguous_format if channels_last else torch.channels_last
    weights = weights_of(output).contiguous(memory_format=other)
    for grad_output in (
        weights,
        torch.ones(1, device=DEVICE).expand_as(output),
        weights[..., :1].expand_as(output),
    ):
        expected = torch.autograd.grad(plain, leaves, grad_output, retain_graph=True)
        actual = torch.autograd.grad(output, leaves, grad_output, retain_graph=True)
        for x, y in zip(actual, expected, strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_elu_is_accurate_everywhere(backend: str, dtype: str) -> None:
    """To 2 eps: in Triton 4 roundings of half an eps (`_expm1`); narrow dtypes round once more.

    Triton's interpreter cuts bfloat16 off, which takes one eps. The slope comes from the output, so
    it is exact to the output's rounding, which is relative to 1, and to its own.
    """
    count = 20_001 if backend == "triton" and INTERPRETED else 200_001
    steps = torch.logspace(-12, 3, count, dtype=torch.float64)
    named = torch.tensor([1e-8, 1e-7, 1e-3, 0.5, 1, 20], dtype=torch.float64)
    x = torch.cat([-steps, steps, -named]).to(DEVICE, DTYPES[dtype])
    x = x[(x.abs() >= torch.finfo(x.dtype).tiny) & x.isfinite()].requires_grad_()
    slot = torch.zeros(1, 1, dtype=x.dtype, device=DEVICE)
    actual = spatial_broadcast(slot, x[None, None], backend=backend).flatten()  # type: ignore[arg-type]
    wide, eps = x.detach().double(), torch.finfo(x.dtype).eps
    expected = torch.where(wide > 0, wide, torch.expm1(wide))
    assert ((actual.double() - expected) / expected).abs().max().item() <= 2 * eps
    (slope,) = torch.autograd.grad(actual.sum(), x)
    assert (slope.double() - wide.clamp(max=0).exp()).abs().max().item() <= 3 * eps


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("elu", [float("nan"), float("inf"), -1, 1e30, -1, 0]),
        ("relu", [float("nan"), float("inf"), 0, 1e30, 0, 0]),
        ("none", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0]),
    ],
)
def test_extreme_inputs(activation: str, expected: list[float], backend: str) -> None:
    infinity = float("inf")
    x = torch.tensor([float("nan"), infinity, -infinity, 1e30, -1e30, 0], device=DEVICE)
    x = x.repeat(3).view(1, 3, 6).requires_grad_()  # whole vectors and rests
    slot = torch.zeros(1, 1, device=DEVICE)
    output = spatial_broadcast(slot, x, activation=activation, backend=backend)  # type: ignore[arg-type]
    wanted = torch.tensor(expected, device=DEVICE).expand(1, 1, 3, 6)
    torch.testing.assert_close(output, wanted, equal_nan=True)
    (grad,) = torch.autograd.grad(output.sum(), x)
    slopes = {
        "elu": [float("nan"), 1, 0, 1, 0, 1],
        "relu": [1, 1, 0, 1, 0, 0],  # as PyTorch: NaN's is 1
        "none": [1] * 6,
    }
    slope = torch.tensor(slopes[activation], device=DEVICE).expand(1, 3, 6).float()
    first = 1 if backend == "reference" else 0  # PyTorch's ELU has NaN or 1, by place in a vector
    torch.testing.assert_close(grad[..., first:], slope[..., first:], equal_nan=True)


@needs_native
@pytest.mark.parametrize("border_classes", [False, True], ids=["vector", "border"])
def test_output_larger_than_the_caches(border_classes: bool) -> None:
    case = SpatialBroadcastCase(9, 64, 90, 91, border_classes=border_classes)
    inputs = case.inputs(device=DEVICE)
    actual = outputs_and_gradients(inputs, "native")
    expected = outputs_and_gradients(inputs, "reference")
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-4, msg=name)


@st.composite
def drawn_inputs(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inputs of any shape, dtype and strides, and options."""
    border_classes = draw(st.booleans())
    sizes = st.integers(2 if border_classes else 0, 9)
    slots, channels = draw(st.integers(0, 5)), draw(st.integers(0, 20))
    height, width = draw(sizes), draw(sizes)
    interpretable = not (INTERPRETED and border_classes)
    backend = draw(st.sampled_from([x for x in AVAILABLE if interpretable or x != "triton"]))
    names = ["f32", "f64"] if backend == "triton" and DEVICE == "cpu" else list(DTYPES)
    dtype = DTYPES[draw(st.sampled_from(names))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def strided(*shape: int) -> Tensor:
        """A view whose dimensions lie in memory in any order, sliced or expanded."""
        order = draw(st.permutations(range(len(shape))))
        steps = [draw(st.integers(0, 2)) for _ in shape]  # 0: expanded
        stored = [shape[i] * steps[i] if steps[i] else min(shape[i], 1) for i in order]
        x = torch.randn(stored, generator=generator).to(DEVICE, dtype)
        x = x.permute([order.index(i) for i in range(len(shape))])
        x = x[tuple(slice(None, None, step or 1) for step in steps)]
        return x.expand(shape).detach().requires_grad_()

    slot = strided(slots, channels, *((3, 3) if border_classes else ()))
    inputs = {"slot": slot, "position": strided(channels, height, width)}
    return inputs, {
        "backend": backend,
        "activation": draw(st.sampled_from(["elu", "relu", "none"])),
    }


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn_inputs())
def test_any_input(drawn: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    inputs, options = drawn
    assert_right(inputs, options["backend"], options["activation"])
