"""The mixture likelihood as an operator: autograd, torch.compile, memory, threads, errors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from op_testing import DEVICE, allocations, backend_params, unwritten_outputs_are_nan  # noqa: F401
from torch import Tensor

from emorl.bench.cases.mixture_nll import MixtureNllCase
from emorl.ops import backends, library, mixture_nll
from emorl.ops.mixture_nll import new_gradient, reference

OBSTACLE = backends(DEVICE)["mixture_nll"]["native"]
needs_native = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
BACKENDS = backend_params("mixture_nll")
COMPILED = [param for param in BACKENDS if param.values[0] != "reference"]
SMALL = MixtureNllCase(2, 3, 5, 7)


def operator(backend: str) -> Any:
    name = "mixture_nll" if backend == "native" else f"mixture_nll_{backend}"
    return getattr(torch.ops.emorl, name).default


PLACE = torch.empty(0, device=DEVICE).device  # "cuda:0"


def arguments(case: MixtureNllCase, gradients: bool, joined: bool = False) -> tuple[Any, ...]:
    inputs = {name: x.detach() for name, x in case.inputs(device=DEVICE).items()}
    image, rgb, mask_logits = inputs.values()
    if joined:
        rgb, mask_logits = torch.cat([rgb, mask_logits], dim=2), None
    else:
        mask_logits.requires_grad_(gradients)
    sigmas = case.options(device=DEVICE)["sigma"] if case.per_slot_sigma else None
    rgb.requires_grad_(gradients)
    return image, rgb, mask_logits, sigmas, 0.1, case.kind, True, False, None


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("scale", [None, 0.5, 1.0])  # 1: what the CPU keeps
@pytest.mark.parametrize("gradients", [False, True], ids=["value", "gradients"])
@pytest.mark.parametrize(
    ("case", "joined"),
    [
        (SMALL, False),
        (SMALL, True),
        (MixtureNllCase(2, 3, 5, 7, layout="first", kind="gaussian"), False),
        (MixtureNllCase(1, 2, 1, 1, kind="mixture_joint", per_slot_sigma=True), False),
    ],
    ids=str,
)
def test_opcheck(
    case: MixtureNllCase, joined: bool, gradients: bool, scale: float | None, backend: str
) -> None:
    torch.library.opcheck(operator(backend), (*arguments(case, gradients, joined)[:-1], scale))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("keeps", [False, True], ids=["inputs", "kept"])
def test_opcheck_backward(keeps: bool, dtype: torch.dtype, joined: bool, backend: str) -> None:
    image, rgb, masks, *options = arguments(SMALL, False, joined)
    slots = (rgb.to(dtype), None if masks is None else masks.to(dtype))
    name = "mixture_nll" if backend == "native" else f"mixture_nll_{backend}"
    op = getattr(torch.ops.emorl, f"{name}_backward").default
    grad_nll, inputs = image.new_ones(len(image)), (image, *slots, options[0])
    if keeps:  # it is all that the backward pass gets
        kept = new_gradient(slots[0], image.shape[1]).fill_(0.5)
        grad_nll, inputs = grad_nll.to(dtype), (kept, *[None] * 4)  # type: ignore[assignment]
    else:
        inputs = (None, *inputs)  # type: ignore[assignment]
    torch.library.opcheck(op, (grad_nll, *inputs, *options[1:-2]))


@needs_native
@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
def test_the_cpu_keeps_the_gradient_alone(joined: bool) -> None:
    image, rgb, masks, *_ = arguments(SMALL, True, joined)
    if library.on_gpu(rgb):
        pytest.skip("on a GPU the inputs are kept")
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        mixture_nll(image, rgb, masks, sigma=0.3, backend="native")
    gradient = rgb.numel() + (0 if masks is None else masks.numel())
    assert sum(tensor.numel() for tensor in saved) == gradient


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
def test_compiles_without_a_graph_break(joined: bool, backend: str) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(image: Tensor, rgb: Tensor, mask_logits: Tensor | None, sigma: float) -> Tensor:
        return mixture_nll(image, rgb, mask_logits, sigma=sigma, backend=backend) * 2

    image, rgb, mask_logits = SMALL.inputs(torch.float64, DEVICE).values()
    expected = reference(image, rgb, mask_logits, sigma=0.2) * 2
    grads = torch.autograd.grad(expected.sum(), (rgb, mask_logits))
    leaves: tuple[Tensor, ...] = (rgb, mask_logits)
    if joined:
        leaves = (torch.cat([rgb.detach(), mask_logits.detach()], dim=2).requires_grad_(),)
        grads = (torch.cat(grads, dim=2),)
    nll = compiled(image, leaves[0], None if joined else mask_logits, 0.2)
    torch.testing.assert_close(nll, expected)
    actual = torch.autograd.grad(nll.sum(), leaves)
    for one, other in zip(actual, grads, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(image, leaves[0], None if joined else mask_logits, 0.2), expected
        )


@needs_native
@pytest.mark.skipif(DEVICE != "cpu", reason="counts memory of the CPU")
@pytest.mark.parametrize("kind", ["gaussian", "mixture", "mixture_joint"])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_allocates_gradients_and_nothing_else_of_their_size(layout: Any, kind: Any) -> None:
    inputs = MixtureNllCase(2, 7, 48, 48, layout=layout).inputs()
    leaves = [inputs["rgb"], inputs["mask_logits"]]
    slots = sum(leaf.numel() * leaf.element_size() for leaf in leaves)

    def step(backend: Any) -> None:
        nll = mixture_nll(**inputs, sigma=0.1, kind=kind, backend=backend)
        torch.autograd.grad(nll.sum(), leaves)

    def value() -> None:
        with torch.no_grad():
            mixture_nll(**inputs, sigma=0.1, kind=kind, backend="native")

    step("native")
    assert sum(allocations(lambda: step("reference"))) > 3 * slots  # the measurement works
    # once unscaled, once times what comes in
    assert 2 * slots <= sum(allocations(lambda: step("native"))) < 2 * slots + 4096
    assert sum(allocations(value)) < 4096


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=2))[1:], ids=str)
def test_subsets_of_gradients(wanted: tuple[bool, bool], backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    leaves = [inputs["rgb"], inputs["mask_logits"]]
    grads = torch.autograd.grad(mixture_nll(**inputs, sigma=0.1, backend="reference").sum(), leaves)
    for leaf, want in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(want)
    mixture_nll(**inputs, sigma=0.1, backend=backend).sum().backward()
    for leaf, want, grad in zip(leaves, wanted, grads, strict=True):
        if want:
            torch.testing.assert_close(leaf.grad, grad, rtol=1e-4, atol=1e-4)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("backend", COMPILED)
def test_backward_runs_twice_on_one_graph(backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    nll = mixture_nll(**inputs, sigma=0.1, backend=backend)
    first = torch.autograd.grad(nll.sum(), inputs["rgb"], retain_graph=True)[0]
    again = torch.autograd.grad(3 * nll.sum(), inputs["rgb"])[0]
    torch.testing.assert_close(3 * first, again)


@pytest.mark.parametrize("backend", COMPILED)
def test_second_derivative_raises(backend: str) -> None:
    inputs = SMALL.inputs(device=DEVICE)
    nll = mixture_nll(**inputs, sigma=0.1, backend=backend)
    with pytest.raises(RuntimeError, match="mixture_nll: no second derivative"):  # noqa: PT012
        (grad,) = torch.autograd.grad(nll.square().sum(), inputs["rgb"], create_graph=True)
        grad.sum().backward()


@pytest.mark.parametrize("backend", COMPILED)
def test_a_gradient_of_the_image_raises(backend: str) -> None:
    image, *others = arguments(SMALL, True)
    nll, _ = operator(backend)(image.requires_grad_(), *others)
    with pytest.raises(RuntimeError, match="mixture_nll: only the reference differentiates"):
        nll.sum().backward()


def test_the_gradient_of_the_image_is_the_reference_s() -> None:
    inputs = SMALL.inputs(torch.float64, DEVICE)
    image = inputs.pop("image").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mixture_nll(x, **inputs, sigma=0.3), image)


@needs_native
@pytest.mark.skipif(DEVICE != "cpu", reason="threads are the CPU's")
def test_any_number_of_threads_gives_the_same_bits() -> None:
    inputs = MixtureNllCase(3, 5, 35, 37).inputs()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            nll = mixture_nll(**inputs, sigma=0.1, backend="native")
            grads = torch.autograd.grad(nll.sum(), (inputs["rgb"], inputs["mask_logits"]))
            found.append((nll.detach(), *grads))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


SHAPES = r"expected image \[B,C,H,W\], rgb \[B,K,C,H,W\] and mask_logits \[B,K,1,H,W\] with K > 0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": zeros(2, 3, 4)}, SHAPES + r", got \[2, 3, 4\], \[2, 2, 3, 4, 5\], \[2, 2, 1"),
        ({"image": zeros(2, 1, 4, 5)}, SHAPES),
        ({"rgb": zeros(2, 3, 4, 5)}, SHAPES),
        ({"rgb": zeros(2, 0, 3, 4, 5), "mask_logits": zeros(2, 0, 1, 4, 5)}, SHAPES),
        ({"mask_logits": zeros(2, 2, 3, 4, 5)}, SHAPES),
        ({"mask_logits": zeros(2, 2, 1, 5, 4)}, SHAPES),
        ({"mask_logits": None}, SHAPES),
        ({"image": zeros(2, 3, 4, 5).byte()}, "image: expected float32, .*, got uint8"),
        ({"rgb": zeros(2, 2, 3, 4, 5).long()}, "rgb: expected float32, .*, got int64"),
        ({"mask_logits": zeros(2, 2, 1, 4, 5).to("meta")}, "mask_logits: expected cpu, got meta"),
        ({"sigma": 0.0}, "sigma: expected a number > 0, got 0.0"),
        ({"sigma": float("nan")}, "sigma: expected a number > 0, got nan"),
        ({"sigma": zeros(3)}, r"sigma: expected \[2\], got \[3\]"),
        ({"sigma": zeros(2).long()}, "sigma: expected float32, .*, got int64"),
        ({"sigma": zeros(2).requires_grad_()}, r"sigma is not differentiable: pass sigma.detach"),
        (
            {"sigma": zeros(2), "kind": "gaussian"},
            'sigma: expected a number for kind "gaussian", got a tensor',
        ),
        (
            {"kind": "laplace"},
            "kind: expected one of gaussian, mixture, mixture_joint, got 'laplace'",
        ),
        ({"rgb_activation": "relu"}, "rgb_activation: expected one of sigmoid, none, got 'relu'"),
        ({"backend": "cuda"}, "backend: expected one of auto, .*, got 'cuda'"),
    ],
)
def test_error_messages(changes: dict[str, Any], message: str) -> None:
    valid = {
        "image": zeros(2, 3, 4, 5),
        "rgb": zeros(2, 2, 3, 4, 5),
        "mask_logits": zeros(2, 2, 1, 4, 5),
        "sigma": 0.1,
    }
    with pytest.raises(ValueError, match=f"mixture_nll: {message}"):
        mixture_nll(**{**valid, **changes})


@needs_native
@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, zeros(2, 3, 4), r"expected image \[B,C,H,W\] and rgb \[B,K,C,H,W\] with K > 0, got"),
        (0, zeros(2, 3, 5, 6), r"image: expected \[2, 3, 5, 7\], got \[2, 3, 5, 6\]"),
        (0, zeros(2, 3, 5, 7).double(), f"image: expected Float on {PLACE}, got Double on cpu"),
        (2, zeros(2, 3, 1, 5, 6), r"mask_logits: expected \[2, 3, 1, 5, 7\], got"),
        (
            2,
            zeros(2, 3, 1, 5, 7).half(),
            f"mask_logits: expected Float on {PLACE}, got Half on cpu",
        ),
        (3, zeros(4), r"slot_sigma: expected \[3\], got \[4\]"),
        (3, zeros(3).double(), f"slot_sigma: expected Float on {PLACE}, got Double on cpu"),
        (5, "laplace", "kind: expected gaussian, mixture or mixture_joint, got laplace"),
    ],
)
def test_error_messages_of_the_native_operator(position: int, value: Any, message: str) -> None:
    changed = list(arguments(SMALL, False))
    changed[position] = value
    with pytest.raises(ValueError, match=f"mixture_nll: {message}"):
        torch.ops.emorl.mixture_nll.default(*changed)


@needs_native
def test_limits_are_said_and_auto_keeps_them() -> None:
    image, rgb, masks = zeros(1, 3, 2, 2), zeros(1, 65, 3, 2, 2), zeros(1, 65, 1, 2, 2)
    torch.testing.assert_close(
        mixture_nll(image, rgb, masks, sigma=0.1), reference(image, rgb, masks, sigma=0.1)
    )
    reason = "at most 64 slots and 8 channels, got 65 and 3"
    with pytest.raises(ValueError, match=f"mixture_nll: backend 'native' cannot run: {reason}"):
        mixture_nll(image, rgb, masks, sigma=0.1, backend="native")
    with pytest.raises(ValueError, match="no gradient of the image"):
        mixture_nll(image.requires_grad_(), rgb[:, :2], masks[:, :2], sigma=0.1, backend="native")


def test_auto_falls_back_and_explicit_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    obstacles = {"cpu": "there is no compiler here", "cuda": "there is no compiler here"}
    monkeypatch.setitem(library.obstacles["mixture_nll"], "native", obstacles)
    monkeypatch.setitem(library.obstacles["mixture_nll"], "triton", obstacles)
    inputs = SMALL.inputs()
    torch.testing.assert_close(mixture_nll(**inputs, sigma=0.1), reference(**inputs, sigma=0.1))
    with pytest.raises(ValueError, match="'native' cannot run: there is no compiler here"):
        mixture_nll(**inputs, sigma=0.1, backend="native")
