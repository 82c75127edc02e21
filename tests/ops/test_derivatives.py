"""Derivatives beside a gradient of `torch.autograd`: right, or an error that names the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_testing import DEVICE, backend_params
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from emorl.bench.cases.convolution import ConvolutionCase
from emorl.bench.cases.mixture_nll import MixtureNllCase
from emorl.bench.cases.normals import normals
from emorl.bench.cases.slot_attention import SlotAttentionCase
from emorl.bench.cases.spatial_broadcast import SpatialBroadcastCase
from emorl.ops import convolution, mixture_nll, slot_attention, slot_iterations, spatial_broadcast
from emorl.ops.slot_iterations import IterationWeights

Call = Callable[[Tensor], Tensor]


def iterated(x: Tensor, slots: Tensor, backend: str, **weights: Tensor) -> Tensor:
    """Two iterations of slot attention, with each weight by its name."""
    return slot_iterations(x, slots, IterationWeights(**weights), iterations=2, backend=backend)


def slots_and_weights(dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    shapes = {"x": (2, 5, 4), "slots": (2, 3, 6), "norm_weight": (6,), "norm_bias": (6,)}
    shapes |= {"query": (3, 6), "query_bias": (3,), "key": (3, 4), "logit": (6,), "value": (2, 4)}
    shapes |= {"weight_ih": (18, 2), "weight_hh": (18, 6), "bias_ih": (18,), "bias_hh": (18,)}
    shapes |= {"mlp_norm_weight": (6,), "mlp_norm_bias": (6,), "weight_in": (7, 6)}
    shapes |= {"bias_in": (7,), "weight_out": (6, 7), "bias_out": (6,)}
    draw = normals(dtype, device)
    return {name: 0.5 * draw(*shape) for name, shape in shapes.items()}


OPERATORS: dict[str, tuple[Callable[..., Tensor], dict[str, Tensor], dict[str, object]]] = {
    "slot_attention": (slot_attention, SlotAttentionCase(2, 3, 5, 4, 6).inputs, {}),
    "mixture_nll": (mixture_nll, MixtureNllCase(2, 3, 4, 4).inputs, {"sigma": 0.3}),
    "spatial_broadcast": (spatial_broadcast, SpatialBroadcastCase(3, 4, 5, 6).inputs, {}),
    "convolution": (convolution, ConvolutionCase(1, 32, 32, 16, 17, 3, 1).inputs, {"padding": 1}),
    "slot_iterations": (iterated, slots_and_weights, {}),
}
ARGUMENTS = [
    *(("slot_attention", name) for name in ("q", "k", "v", "logit_bias")),
    *(("mixture_nll", name) for name in ("image", "rgb", "mask_logits")),
    *(("spatial_broadcast", name) for name in ("slot", "position")),
    *(("convolution", name) for name in ("x", "weight", "bias")),
    *(("slot_iterations", name) for name in ("x", "slots", "key", "weight_hh", "bias_out")),
]


def of_argument(operator: str, argument: str, backend: str) -> tuple[Call, Tensor]:
    """The operator as a function of one argument, and that argument."""
    function, inputs, options = OPERATORS[operator]
    given = {name: x.detach() for name, x in inputs(torch.float64, DEVICE).items()}

    def call(x: Tensor) -> Tensor:
        return function(**{**given, argument: x}, **options, backend=backend)

    return call, given[argument]


def dual(call: Call, x: Tensor, way: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(call(forward_ad.make_dual(x, way))).tangent


def dual_without_graph(call: Call, x: Tensor, way: Tensor) -> Tensor | None:
    with torch.no_grad():
        return dual(call, x, way)


def total(call: Call) -> Call:
    return lambda x: call(x).square().sum()


# Each gives what the derivatives of the plain form give, from (call, x, direction).
DERIVATIVES: dict[str, Callable[[Call, Tensor, Tensor], Tensor | None]] = {
    "dual": dual,
    "dual-leaf": lambda call, x, way: dual(call, x.clone().requires_grad_(), way),
    "dual-no-grad": dual_without_graph,
    "jvp": lambda call, x, way: torch.func.jvp(call, (x,), (way,))[1],
    "jacfwd": lambda call, x, way: torch.func.jacfwd(lambda t: call(x + t * way))(
        way.new_zeros(2)[0]
    ),
    "grad": lambda call, x, way: torch.func.grad(total(call))(x),
    "vjp": lambda call, x, way: torch.func.vjp(total(call), x)[1](way.new_ones(2)[0])[0],
    "jacrev": lambda call, x, way: torch.func.jacrev(total(call))(x),
    "vmap-grad": lambda call, x, way: torch.vmap(torch.func.grad(total(call)))(x[None]),
    "grad-vmap": lambda call, x, way: torch.func.grad(total(torch.vmap(call)))(x[None]),
    "jvp-vmap": lambda call, x, way: torch.func.jvp(torch.vmap(call), (x[None],), (way[None],))[1],
    "hessian": lambda call, x, way: torch.func.jvp(torch.func.grad(total(call)), (x,), (way,))[1],
    "vmap": lambda call, x, way: torch.vmap(call)(torch.stack([x, way])),
    "batched": lambda call, x, way: batched_gradients(call, x),
}
WITHOUT_GRADIENT = ("vmap", "batched")  # every backend has these


def batched_gradients(call: Call, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    output = call(leaf)
    ways = torch.stack([torch.ones_like(output), output.detach()])
    return torch.autograd.grad(output, leaf, ways, is_grads_batched=True)[0]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("backend", ["auto", "native", "triton"])
@pytest.mark.parametrize(("operator", "argument"), ARGUMENTS)
def test_right_or_refused(operator: str, argument: str, backend: str, derivative: str) -> None:
    refused = {*backend_names(operator)} - {"reference"}
    if backend != "auto" and backend not in refused:
        pytest.skip(f"no {backend} kernels here")
    if backend == "triton" and derivative in WITHOUT_GRADIENT:
        pytest.skip("the interpreter takes no batched tensors")
    call, x = of_argument(operator, argument, backend)
    way = torch.randn_like(x)
    take = DERIVATIVES[derivative]
    if backend != "auto" and (derivative not in WITHOUT_GRADIENT or argument == "image"):
        if derivative == "vmap":
            return
        with pytest.raises(ValueError, match=f"^{operator}: backend '{backend}' cannot run"):
            take(call, x, way)
        return
    plain, _ = of_argument(operator, argument, "reference")
    found = take(call, x, way)
    assert found is not None
    torch.testing.assert_close(found, take(plain, x, way), rtol=1e-9, atol=1e-9)


def backend_names(operator: str) -> list[str]:
    return [p.values[0] for p in backend_params(operator) if not p.marks[0].args[0]]


@pytest.mark.parametrize(("operator", "argument"), [x for x in ARGUMENTS if x[1] != "image"])
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_second_derivatives_are_refused(operator: str, argument: str, backend: str) -> None:
    """Also where the loss contains the first derivatives beside what they are of."""
    if backend not in backend_names(operator):
        pytest.skip(f"no {backend} kernels here")
    call, x = of_argument(operator, argument, backend)
    leaf = x.clone().requires_grad_()
    output = call(leaf)
    with pytest.raises(RuntimeError, match=f"{operator}: no second derivative"):  # noqa: PT012
        (gradient,) = torch.autograd.grad(
            output.square().sum(), leaf, create_graph=True, retain_graph=True
        )
        torch.autograd.grad(gradient.square().sum() + output.sum(), leaf)
    with forward_ad.dual_level():
        ways = forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output))
        with pytest.raises(RuntimeError, match=f"{operator}: no second derivative"):
            torch.autograd.grad(output, leaf, ways)


class Calls(TorchDispatchMode):
    """Notes which of emorl's operators PyTorch is asked for, and with what."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, tuple[Any, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "emorl":
            self.found[func] = args
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_operators_called_directly_refuse_forward_mode(operator: str, backend: str) -> None:
    """Through `torch.ops`, where nothing looks at the arguments before; backward ones too."""
    if backend not in backend_names(operator):
        pytest.skip(f"no {backend} kernels here")
    call, x = of_argument(operator, [a for o, a in ARGUMENTS if o == operator][-1], backend)
    with Calls() as calls:
        call(x.clone().requires_grad_()).sum().backward()
    assert len(calls.found) == 2  # forward and backward
    for op, arguments in calls.found.items():
        for place, value in enumerate(arguments):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue

            def direct(x: Tensor, op: Any = op, place: int = place, given: Any = arguments) -> Any:
                return op(*given[:place], x, *given[place + 1 :])

            value = value.detach()
            for take in (dual, dual_without_graph, DERIVATIVES["jvp"]):
                with pytest.raises(RuntimeError, match=f"^{op.name()}: no forward-mode"):
                    take(direct, value, value)


def test_attention_has_forward_derivatives_too() -> None:
    _, inputs, _ = OPERATORS["slot_attention"]
    q, k, bias, v = (x.detach() for x in inputs(torch.float64, DEVICE).values())

    def attention(q: Tensor) -> Tensor:
        return slot_attention(q, k, v, logit_bias=bias, return_attention=True)[1]

    def plain(q: Tensor) -> Tensor:
        return (q @ k.mT + bias[..., None]).softmax(dim=1)

    found, expected = (torch.func.jvp(f, (q,), (q,))[1] for f in (attention, plain))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize(("operator", "argument"), ARGUMENTS[3::3])
def test_a_compiled_graph_is_made_anew(operator: str, argument: str, backend: str) -> None:
    """What was compiled without forward mode is not taken for it."""
    if backend != "auto" and backend not in backend_names(operator):
        pytest.skip(f"no {backend} kernels here")
    torch._dynamo.reset()
    call, x = of_argument(operator, argument, backend)
    compiled = torch.compile(call, backend="eager")
    torch.testing.assert_close(compiled(x), call(x))
    if backend == "native":
        with pytest.raises(ValueError, match=f"{operator}: backend 'native' cannot run"):
            dual(compiled, x, x)
    else:
        expected = dual(of_argument(operator, argument, "reference")[0], x, x)
        torch.testing.assert_close(dual(compiled, x, x), expected)
