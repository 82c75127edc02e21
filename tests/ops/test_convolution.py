"""Convolution with its activation: against float64, as an operator, and its limits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_testing import (  # noqa: F401
    DEVICE,
    backend_params,
    unwritten_outputs_are_nan,
)
from torch import Tensor
from torch.library import opcheck
from torch.nn.grad import conv2d_input, conv2d_weight

from emorl.bench.accuracy import assert_as_accurate_as_plain
from emorl.ops import backends, convolution, library

KERNELS = [p for p in backend_params("convolution", compiled=True) if p.values[0] == "native"]
OBSTACLE = backends(DEVICE)["convolution"]["native"]
needs_native = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
ON_GPU = library.on_gpu(torch.empty(0, device=DEVICE))
of_the_cpu = pytest.mark.skipif(ON_GPU, reason="what the CPU's kernels promise")
of_a_gpu = pytest.mark.skipif(not ON_GPU, reason="what the CPU's kernels cannot do")

# B, C, D, H, W, kernel, padding: every padding, whole and partial tiles and blocks, one pixel
SHAPES = [
    (2, 32, 64, 9, 11, 3, 0),
    (3, 64, 32, 8, 13, 3, 1),
    (1, 16, 48, 5, 1, 3, 2),
    (2, 32, 32, 9, 7, 5, 0),
    (1, 48, 16, 13, 6, 5, 1),
    (2, 64, 64, 11, 12, 5, 2),
    (1, 16, 16, 5, 5, 5, 4),
    (1, 16, 16, 5, 5, 5, 0),
    (0, 16, 16, 5, 5, 3, 1),
    (13, 16, 16, 17, 19, 3, 1),
]


# On a GPU as well: any kernel and number of channels; packs of channels or pixels, and what is not
# a multiple of them; more channels than a block takes, more pixels than its threads
GPU_SHAPES = [
    (2, 3, 5, 6, 7, 1, 0),
    (2, 4, 8, 9, 8, 4, 2),
    (1, 16, 17, 9, 8, 7, 3),
    (3, 1, 1, 5, 5, 3, 0),
    (1, 2, 520, 5, 4, 3, 1),
    (5, 3, 4, 40, 41, 3, 1),
    (2, 3, 300, 3, 3, 3, 0),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    batch, channels, out, height, width, kernel, _ = shape
    drawn = {
        "x": torch.randn(batch, channels, height, width),
        "weight": torch.randn(out, channels, kernel, kernel) / (channels**0.5 * kernel),
        "bias": torch.randn(out),
    }
    return {n: x.to(DEVICE, dtype).requires_grad_() for n, x in drawn.items()}


def cotangent(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)


def results(values: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    output = convolution(**values, **options)
    grads = torch.autograd.grad(output, list(values.values()), cotangent(output))
    named = {f"grad_{name}": grad for name, grad in zip(values, grads, strict=True)}
    return {"output": output.detach(), **named}


def roundings(
    exact: dict[str, Tensor], dtype: torch.dtype, padding: int, stride: int
) -> dict[str, float]:
    """For `assert_as_accurate_as_plain`, with ELU.

    A sum of n terms is rounded n times, by at most the terms' absolute sum. A narrow dtype also
    stores what was convolved, and the gradient before the activation; `stored` is its unit in
    float32's. ELU's slope is y + 1, so an error of y is one of the slope, and none is above 1.
    """
    x, weight, bias = (value.detach() for value in exact.values())
    where = {"padding": padding, "stride": stride}
    stored = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps if dtype.itemsize < 4 else 0
    total = F.conv2d(x, weight, bias, **where)
    y, weights = F.elu(total), cotangent(total)
    # the narrow cotangent is the one that is multiplied
    grad = weights.to(dtype).double().abs()
    before = grad * torch.where(y > 0, 1, y + 1)
    sums = F.conv2d(x.abs(), weight.abs(), bias.abs(), **where)
    of_y = (weight[0].numel() + 3) * sums + stored * (sums + y.abs())
    of_before = (2 + stored) * before + grad * of_y + stored * grad

    def summed(terms: int, to_inputs: Callable[[Tensor], Tensor]) -> float:
        return float((to_inputs(of_before) + terms * to_inputs(before)).max())

    taps = weight.shape[2] * weight.shape[3]
    pixels = y.numel() // y.shape[1]
    to_x = partial(conv2d_input, x.shape, weight.abs(), **where)
    to_weight = partial(conv2d_weight, x.abs(), weight.shape, **where)
    return {
        "output": float(of_y.max()),
        "grad_x": summed(len(weight) * taps, to_x),
        "grad_weight": summed(pixels, to_weight),
        "grad_bias": summed(pixels, lambda grads: grads.sum(dim=(0, 2, 3))),
    }


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("activation", ["elu", "relu", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_in_float64(shape: tuple[int, ...], activation: str, backend: str) -> None:
    values = inputs(shape, torch.float64)
    options = {"padding": shape[-1], "activation": activation}
    expected = results(values, backend="reference", **options)
    for name, actual in results(values, backend=backend, **options).items():
        torch.testing.assert_close(actual, expected[name], rtol=1e-11, atol=1e-11)


@of_a_gpu
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_any_size_on_a_gpu(
    shape: tuple[int, ...], dtype: torch.dtype, stride: int, layout: str, backend: str
) -> None:
    values = inputs(shape, dtype)
    form = torch.channels_last if layout == "last" else torch.contiguous_format
    values["x"] = values["x"].detach().contiguous(memory_format=form).requires_grad_()
    exact = {name: x.detach().double().requires_grad_() for name, x in values.items()}
    options: dict[str, Any] = {"padding": shape[-1], "stride": stride, "activation": "elu"}
    truth = results(exact, backend="reference", **options)
    plain = results(values, backend="reference", **options)
    found = results(values, backend=backend, **options)
    allowed = roundings(exact, dtype, shape[-1], stride)
    assert_as_accurate_as_plain(found, plain, truth, allowed)
    assert found["output"].dtype == dtype
    assert found["output"].is_contiguous(memory_format=form)


@of_a_gpu
@pytest.mark.parametrize("backend", KERNELS)
def test_autocast_on_a_gpu(backend: str) -> None:
    values = inputs((2, 3, 8, 9, 7, 3, 1), torch.float32)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        output = convolution(**values, padding=1, activation="elu", backend=backend)
        plain = convolution(**values, padding=1, activation="elu", backend="reference")
    assert output.dtype == torch.bfloat16
    exact = {name: x.detach().bfloat16().double() for name, x in values.items()}
    truth = convolution(**exact, padding=1, activation="elu", backend="reference")
    assert_as_accurate_as_plain(
        {"output": output},
        {"output": plain},
        {"output": truth},
        roundings(exact, torch.bfloat16, 1, 1),
    )
    grads = torch.autograd.grad(output.float().sum(), list(values.values()))
    assert {grad.dtype for grad in grads} == {torch.float32}


@needs_native
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("channels", [32, 64])
def test_rounds_at_most_twice_as_badly_as_adding_in_a_row(channels: int, kernel: int) -> None:
    """PyTorch's own error differs threefold between processors; in a row is its worst.

    A float32 rounds by 0.21 eps (rms, as a share of itself), and so does each of n partial sums,
    none of which is larger than the last (rms): 0.21 eps sqrt(n) in all.
    """
    values = inputs((8, channels, channels, 35, 35, kernel, 1), torch.float32)
    exact = {name: x.detach().double().requires_grad_() for name, x in values.items()}
    truth = results(exact, padding=1, backend="reference")
    ours = results(values, padding=1, backend="native")
    products = channels * kernel**2
    pixels = truth["output"][:, 0].numel()
    added = {"output": products, "grad_x": products, "grad_weight": pixels, "grad_bias": pixels}

    for name, expected in truth.items():
        in_a_row = 0.21 * torch.finfo(torch.float32).eps * added[name] ** 0.5
        error = (ours[name].double() - expected).square().mean().sqrt()
        assert 0 < error <= 2 * in_a_row * expected.square().mean().sqrt(), name


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("kernel", [3, 5])
def test_operator_contract(kernel: int, layout: str, backend: str) -> None:
    values = inputs((1, 16, 16, 6, 7, kernel, 1), torch.float64)
    if layout == "last":
        last = values["x"].detach().contiguous(memory_format=torch.channels_last)
        values["x"] = last.requires_grad_()
    opcheck(torch.ops.emorl.convolution.default, (*values.values(), 1, 1, "elu"))
    detached = [x.detach() for x in values.values()]
    output = convolution(*detached, padding=1, activation="elu", backend=backend)
    arguments = (torch.randn_like(output), *detached[:2], output, 1, 1, "elu", [True, True, True])
    opcheck(torch.ops.emorl.convolution_backward.default, arguments)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("activation", ["elu", "none"])
def test_gradcheck(activation: str, backend: Any) -> None:
    values = inputs((1, 16, 16, 3, 3, 3, 1), torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: convolution(*x, padding=1, activation=activation, backend=backend),
        list(values.values()),
        fast_mode=True,
    )


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("activation", ["elu", "none"])
@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_subsets_of_gradients(wanted: str, activation: Any, backend: Any) -> None:
    values = inputs(SHAPES[1], torch.float64)
    expected = results(values, padding=1, activation=activation, backend="reference")
    alone = {name: x.detach().requires_grad_(name == wanted) for name, x in values.items()}
    output = convolution(**alone, padding=1, activation=activation, backend=backend)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
    (grad,) = torch.autograd.grad((output * weights).sum(), alone[wanted])
    torch.testing.assert_close(grad, expected[f"grad_{wanted}"])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_strides_and_no_bias(activation: Any, backend: Any) -> None:
    values = inputs((4, 32, 32, 10, 9, 3, 1), torch.float64)
    x = values["x"][::2, :, 1::2].transpose(2, 3)
    weight = values["weight"].transpose(2, 3)
    found, expected = (
        convolution(x, weight, padding=1, activation=activation, backend=name)
        for name in (backend, "reference")
    )
    torch.testing.assert_close(found, expected)
    leaves = (values["x"], values["weight"])
    grads = (torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@needs_native
def test_one_graph_with_torch_compile() -> None:
    values = inputs((2, 32, 32, 8, 8, 3, 1), torch.float32)
    compiled = torch.compile(convolution, backend="aot_eager", fullgraph=True)
    options = {"padding": 1, "activation": "relu", "backend": "native"}
    expected = results(values, **options)["output"]
    torch.testing.assert_close(compiled(**values, **options), expected)


@of_the_cpu
@needs_native
def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    values = inputs((9, 32, 32, 19, 18, 3, 1), torch.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(results(values, padding=1, backend="native"))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name, value in found[0].items():
            assert torch.equal(value, other[name]), name


@of_the_cpu
@needs_native
@pytest.mark.parametrize(
    ("shape", "dtype", "native"),
    [
        ((1, 16, 16, 16, 16, 3, 1), torch.float32, True),  # with an activation
        ((1, 16, 16, 18, 18, 5, 1), torch.float32, True),
        ((1, 16, 16, 15, 17, 3, 1), torch.float32, False),  # few pixels
        ((9, 16, 16, 15, 17, 3, 1), torch.float32, False),  # in each image
        ((1, 16, 16, 18, 17, 5, 1), torch.float32, False),
        ((1, 8, 16, 16, 16, 3, 1), torch.float32, False),  # no kernels
        ((1, 128, 128, 16, 16, 3, 1), torch.float32, True),
        ((1, 128, 128, 18, 18, 5, 1), torch.float32, True),
        ((1, 192, 128, 16, 16, 3, 1), torch.float32, False),  # wide
        ((1, 96, 256, 18, 18, 5, 1), torch.float32, False),
        ((1, 128, 128, 16, 16, 3, 1), torch.float64, False),
    ],
    ids=str,
)
def test_auto_takes_what_wins(shape: tuple[int, ...], dtype: torch.dtype, native: bool) -> None:
    values = inputs(shape, dtype)
    output = convolution(**values, padding=shape[-1], activation="relu")
    assert ("emorl" in output.grad_fn.name()) == native
    output = convolution(**values, padding=shape[-1])
    assert ("emorl" in output.grad_fn.name()) == (native and shape[1] > 16)


@of_the_cpu
@needs_native
def test_auto_leaves_autocast_alone() -> None:
    values = inputs((1, 32, 32, 16, 16, 3, 1), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert convolution(**values, padding=1).dtype == torch.bfloat16


@of_the_cpu
@needs_native
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 8, 16, 6, 6, 3, 1), {}, r"channels in multiples of 16 are needed, got \[16, 8\]"),
        ((1, 16, 16, 9, 9, 7, 1), {}, "a 3x3 or 5x5 kernel and less padding are needed"),
        ((1, 16, 16, 9, 9, 3, 3), {}, r"got \[3, 3\] and padding 3"),
        ((1, 16, 16, 2, 9, 5, 1), {}, "expected an image of at least 3 pixels a side"),
        ((1, 16, 16, 9, 9, 3, 1), {"stride": 2}, "a stride of 1 is needed, got 2"),
        ((1, 16, 16, 9, 9, 3, 1), {"activation": "gelu"}, "expected one of elu, relu, none"),
        ((1, 16, 16, 9, 9, 3, 1), {"backend": "triton"}, "cannot run: it has no triton kernels"),
    ],
)
def test_what_cannot_run_says_why(
    shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    values = inputs(shape, torch.float32)
    with pytest.raises(ValueError, match=message):
        convolution(**values, padding=shape[-1], **{"backend": "native", **options})
    half = {name: x.detach().half() for name, x in inputs(SHAPES[0], torch.float32).items()}
    with pytest.raises(ValueError, match="float32 or float64 outside autocast is needed"):
        convolution(**half, backend="native")


@needs_native
@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("output", (1, 16, 6, 7), r"output: expected \[1, 16, 6, 6\], got \[1, 16, 6, 7\]"),
        ("grad", (1, 16, 6), r"expected the gradient of \[1, 16, 6, 6\], got \[1, 16, 6\]"),
        ("output", torch.float64, "output: expected Float on .*, got Double on"),
        ("grad", torch.float64, "gradient: expected Float on .*, got Double on"),
    ],
)
def test_native_backward_refuses_what_is_not_of_its_output(
    name: str, given: tuple[int, ...] | torch.dtype, message: str
) -> None:
    values = inputs((1, 16, 16, 6, 6, 3, 1), torch.float32)
    x, weight = values["x"].detach(), values["weight"].detach()
    tensors = {"grad": torch.zeros_like(x), "output": torch.zeros_like(x)}
    tensors[name] = (
        tensors[name].to(given) if isinstance(given, torch.dtype) else x.new_zeros(given)
    )
    op = torch.ops.emorl.convolution_backward.default
    with pytest.raises(ValueError, match=f"convolution: {message}"):
        op(tensors["grad"], x, weight, tensors["output"], 1, 1, "elu", [True, True, True])


@needs_native
def test_native_backward_refuses_no_stride() -> None:
    x, weight = torch.zeros(1, 16, 6, 6, device=DEVICE), torch.zeros(16, 16, 3, 3, device=DEVICE)
    op = torch.ops.emorl.convolution_backward.default
    with pytest.raises(ValueError, match="expected a stride of at least 1, got 0"):
        op(x, x, weight, x, 1, 0, "elu", [True, True, True])


@of_a_gpu
@pytest.mark.parametrize("backend", KERNELS)
def test_the_operator_takes_its_arguments_dtype_under_autocast(backend: str) -> None:
    values = inputs((1, 16, 16, 6, 6, 3, 1), torch.float32)
    x, weight, bias = (value.detach() for value in values.values())
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        output = torch.ops.emorl.convolution.default(x, weight, bias, 1, 1, "elu")
    expected = convolution(x, weight, bias, padding=1, activation="elu", backend=backend)
    torch.testing.assert_close(output, expected)
