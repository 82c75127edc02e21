"""Spatial broadcast as an operator: autograd, torch.compile, memory, threads, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_testing import DEVICE, allocations, backend_params, unwritten_outputs_are_nan  # noqa: F401
from test_spatial_broadcast import (  # noqa: F401
    SMALL,
    SMALL_BORDER,
    border_classes_are_rarely_interpreted,
    outputs_and_gradients,
    weights_of,
)
from torch import Tensor

from emorl.bench.cases.spatial_broadcast import SpatialBroadcastCase
from emorl.ops import backends, spatial_broadcast

BACKENDS = backend_params("spatial_broadcast")
KERNELS = [param for param in BACKENDS if param.values[0] != "reference"]
OBSTACLE = backends(DEVICE)["spatial_broadcast"]["native"]
needs_native = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))


@pytest.mark.skipif(DEVICE != "cpu", reason="counts allocations on the CPU")
@needs_native
@pytest.mark.parametrize("border_classes", [False, True], ids=["vector", "border"])
def test_nothing_large_but_the_output_is_allocated(border_classes: bool) -> None:
    inputs = SpatialBroadcastCase(8, 16, 32, 33, border_classes=border_classes).inputs()
    outputs: list[Tensor] = []
    forward = allocations(lambda: outputs.append(spatial_broadcast(**inputs, backend="native")))
    (output,) = outputs
    size = output.numel() * output.element_size()
    assert [x for x in forward if 2 * x >= size] == [size]
    weights = weights_of(output)
    sizes = allocations(lambda: torch.autograd.grad(output, list(inputs.values()), weights))
    assert sizes
    assert sum(sizes) < size // 2


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=str)
@pytest.mark.parametrize("case", [SMALL, SMALL_BORDER], ids=str)
def test_subsets_of_gradients(
    case: SpatialBroadcastCase, wanted: tuple[bool, bool], backend: str
) -> None:
    inputs = case.inputs(torch.float64, DEVICE)
    expected = outputs_and_gradients(inputs, "reference")
    (name,) = (name for name, want in zip(inputs, wanted, strict=True) if want)
    arguments = {x: value.detach().requires_grad_(x == name) for x, value in inputs.items()}
    output = spatial_broadcast(**arguments, backend=backend)  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(output, arguments[name], weights_of(output))
    torch.testing.assert_close(grad, expected[f"grad_{name}"])


@pytest.mark.parametrize("backend", KERNELS)
def test_backward_runs_twice_on_one_graph(backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    output = spatial_broadcast(**inputs, backend=backend)  # type: ignore[arg-type]
    first = torch.autograd.grad(output.sum(), list(inputs.values()), retain_graph=True)
    second = torch.autograd.grad(output.sum(), list(inputs.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_second_derivative_raises(backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    output = spatial_broadcast(**inputs, backend=backend)  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(output.square().sum(), inputs["slot"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"spatial_broadcast\w*: no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_are_promoted(backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    slot, position = inputs["slot"], inputs["position"].detach().bfloat16().requires_grad_()
    output = spatial_broadcast(slot, position, backend=backend)  # type: ignore[arg-type]
    assert output.dtype == torch.float32
    grads = torch.autograd.grad(output.sum(), (slot, position))
    assert [grad.dtype for grad in grads] == [torch.float32, torch.bfloat16]


@needs_native
def test_repeats_bit_by_bit_with_any_number_of_threads() -> None:
    inputs = SpatialBroadcastCase(3, 16, 41, 40, border_classes=True).inputs(device=DEVICE)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(inputs, "native"))
            again = outputs_and_gradients(inputs, "native")
            assert all(torch.equal(results[-1][name], again[name]) for name in again)
    finally:
        torch.set_num_threads(before)
    for name, value in results[0].items():
        torch.testing.assert_close(results[2][name], value, rtol=1e-5, atol=1e-5, msg=name)


OPCHECKED = [
    SMALL,
    SMALL_BORDER,
    SpatialBroadcastCase(2, 3, 4, 3, channels_last=False, border_classes=True),
    SpatialBroadcastCase(1, 1, 1, 1),
    SpatialBroadcastCase(0, 3, 4, 3),
]


@needs_native
@pytest.mark.parametrize("case", OPCHECKED, ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_forward(case: SpatialBroadcastCase, requires_grad: bool) -> None:
    inputs = (x.detach().requires_grad_(requires_grad) for x in case.inputs(device=DEVICE).values())
    op = torch.ops.emorl.spatial_broadcast.default
    torch.library.opcheck(op, (*inputs, case.activation))


@needs_native
@pytest.mark.parametrize("case", OPCHECKED, ids=str)
@pytest.mark.parametrize("wanted", [[True, True], [True, False], [False, True]], ids=str)
def test_opcheck_backward(case: SpatialBroadcastCase, wanted: list[bool]) -> None:
    inputs = case.inputs(device=DEVICE)
    output = spatial_broadcast(**inputs).detach()
    op = torch.ops.emorl.spatial_broadcast_backward.default
    arguments = (weights_of(output), output, inputs["slot"].detach(), "elu", wanted)
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("border_classes", [False, True], ids=["vector", "border"])
def test_compiles_without_a_graph_break(
    border_classes: bool, channels_last: bool, backend: str
) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(slot: Tensor, position: Tensor) -> Tensor:
        return spatial_broadcast(slot * 2, position, backend=backend) + 1  # type: ignore[arg-type]

    case = SpatialBroadcastCase(
        2, 4, 5, 3, border_classes=border_classes, channels_last=channels_last
    )
    inputs = case.inputs(torch.float64, DEVICE)
    slot, position = inputs["slot"], inputs["position"]
    actual = compiled(slot, position)
    expected = spatial_broadcast(slot * 2, position, backend="reference") + 1
    assert actual.stride() == expected.stride()
    torch.testing.assert_close(actual, expected)
    weights = weights_of(expected)
    for x, y in zip(
        torch.autograd.grad(actual, (slot, position), weights),
        torch.autograd.grad(expected, (slot, position), weights),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


EXPECTED_SHAPES = (
    r"^spatial_broadcast: expected slot \[M,C\] or \[M,C,3,3\] and position \[C,H,W\], got "
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slot": zeros(2)}, EXPECTED_SHAPES + r"\[2\] and \[3, 4, 5\]$"),
        ({"slot": zeros(2, 3, 1, 1)}, EXPECTED_SHAPES + r"\[2, 3, 1, 1\] and \[3, 4, 5\]$"),
        ({"slot": zeros(2, 4)}, EXPECTED_SHAPES + r"\[2, 4\] and \[3, 4, 5\]$"),
        ({"position": zeros(1, 3, 4, 5)}, EXPECTED_SHAPES + r"\[2, 3\] and \[1, 3, 4, 5\]$"),
        (
            {"slot": zeros(2, 3, 3, 3), "position": zeros(3, 1, 5)},
            r"position: expected height and width of at least 2 with slot \[M,C,3,3\], "
            r"got \[3, 1, 5\]$",
        ),
        (
            {"slot": zeros(2, 3).long()},
            r"^spatial_broadcast: slot: expected float32, float64, bfloat16, float16, got int64$",
        ),
        ({"position": zeros(3, 4, 5).to(torch.complex64)}, "position: expected .* got complex64$"),
        ({"slot": zeros(2, 3).to("meta")}, "^spatial_broadcast: slot: expected cpu, got meta$"),
        (
            {"activation": "gelu"},
            "^spatial_broadcast: activation: expected one of elu, relu, none, got 'gelu'$",
        ),
        ({"backend": "cuda"}, "^spatial_broadcast: backend: expected one of .*, got 'cuda'$"),
    ],
)
def test_error_messages(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spatial_broadcast(**{"slot": zeros(2, 3), "position": zeros(3, 4, 5), **arguments})


@pytest.mark.skipif(backends()["spatial_broadcast"]["native"] is not None, reason="not built")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((zeros(2, 4), zeros(3, 4, 5), "elu"), r"expected slot \[M,C\] or \[M,C,3,3\] and"),
        ((zeros(2, 3, 3, 3), zeros(3, 1, 5), "elu"), r"at least 2 with slot .*, got \[3, 1, 5\]"),
        (
            (zeros(2, 3).double(), zeros(3, 4, 5), "elu"),
            "slot: expected Float on cpu, got Double on cpu",
        ),
        ((zeros(2, 3), zeros(3, 4, 5), "gelu"), "expected one of elu, relu, none, got 'gelu'"),
    ],
)
def test_error_messages_of_the_native_operator(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.emorl.spatial_broadcast.default(*arguments)


@pytest.mark.skipif(backends()["spatial_broadcast"]["native"] is not None, reason="not built")
def test_native_backward_refuses_a_gradient_of_another_shape() -> None:
    op = torch.ops.emorl.spatial_broadcast_backward.default
    with pytest.raises(ValueError, match=r"expected the gradient of \[2, 3, 4, 5\], got \[2, 3\]"):
        op(zeros(2, 3), zeros(2, 3, 4, 5), zeros(2, 3), "elu", [True, True])


@pytest.mark.skipif(backends()["spatial_broadcast"]["native"] is not None, reason="not built")
@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2, 3, 2, 2), (2,)], ids=str)
def test_native_backward_refuses_slots_of_another_shape(shape: tuple[int, ...]) -> None:
    op = torch.ops.emorl.spatial_broadcast_backward.default
    output = zeros(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"expected slot \[M,C\] or \[M,C,3,3\] and output"):
        op(output, output, zeros(*shape), "elu", [True, True])


@pytest.mark.skipif(backends()["spatial_broadcast"]["native"] is not None, reason="not built")
@pytest.mark.parametrize("name", ["gradient", "slot"])
def test_native_backward_refuses_other_dtypes(name: str) -> None:
    given = {"gradient": zeros(2, 3, 4, 5), "output": zeros(2, 3, 4, 5), "slot": zeros(2, 3)}
    given[name] = given[name].double()
    op = torch.ops.emorl.spatial_broadcast_backward.default
    with pytest.raises(ValueError, match=f"{name}: expected Float on cpu, got Double on cpu"):
        op(given["gradient"], given["output"], given["slot"], "elu", [True, True])
