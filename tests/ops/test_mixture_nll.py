"""The mixture likelihood against truth: numbers, gradients, extremes, layouts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_testing import (  # noqa: F401
    DEVICE,
    backend_params,
    unwritten_outputs_are_nan,
)
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from emorl.bench.cases.mixture_nll import MIXTURE_NLL, MixtureNllCase
from emorl.models.iodine.likelihood import MixtureKind, likelihood_and_gradient
from emorl.ops import mixture_nll, mixture_nll_and_gradient

BACKENDS = backend_params("mixture_nll")
COMPILED = [param for param in BACKENDS if param.values[0] != "reference"]
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 1e-2}
KINDS = ["gaussian", "mixture", "mixture_joint"]


def results(inputs: dict[str, Tensor], backend: str, **options: Any) -> dict[str, Tensor]:
    """The value, and the gradient of a weighted sum of it for each leaf."""
    nll = mixture_nll(**inputs, backend=backend, **options)
    weights = torch.linspace(0.5, 1.5, len(nll), dtype=torch.float64).to(nll)
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    grads = torch.autograd.grad((nll * weights).sum(), list(leaves.values()))
    named = {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"nll": nll.detach(), **named}


def cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same leaves in another dtype, in the same layout."""
    return {
        name: x.detach().to(dtype).requires_grad_(x.requires_grad) for name, x in inputs.items()
    }


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("case", MIXTURE_NLL, ids=str)
def test_as_accurate_as_plain(case: MixtureNllCase, backend: str) -> None:
    inputs, options = case.inputs(device=DEVICE), case.options(device=DEVICE)
    wide = cast(inputs, torch.float64)
    wide_options = case.options(torch.float64, DEVICE)
    truth = results(wide, "reference", **wide_options)
    for name, value in results(inputs, backend, **options).items():
        allowed = TOLERANCES[value.dtype]
        torch.testing.assert_close(
            value.double(), truth[name], rtol=allowed, atol=allowed, msg=name
        )
    for name, actual in results(wide, backend, **wide_options).items():
        torch.testing.assert_close(actual, truth[name], rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        *(MixtureNllCase(2, 3, 5, 7, kind=k, layout=x) for k in KINDS for x in ("first", "last")),
        MixtureNllCase(2, 3, 5, 7, kind="mixture_joint", per_slot_sigma=True),
        MixtureNllCase(1, 2, 3, 5, channels=4),
        MixtureNllCase(0, 3, 4, 5),
        MixtureNllCase(2, 3, 4, 5, channels=0),
    ],
    ids=str,
)
def test_value_and_gradient_at_once(case: MixtureNllCase, dtype: torch.dtype, backend: str) -> None:
    """The same bits as those of autograd, whatever the form of the call."""
    wide = torch.promote_types(dtype, torch.float32)
    inputs, options = case.inputs(device=DEVICE), case.options(wide, DEVICE)
    image = inputs["image"].to(wide)
    decoded = torch.cat([inputs["rgb"], inputs["mask_logits"]], dim=2).detach().to(dtype)
    if case.layout == "last":
        decoded = decoded.movedim(2, -1).contiguous().movedim(-1, 2)
    leaf = decoded.clone().requires_grad_()
    expected = mixture_nll(image, leaf, backend=backend, **options)
    (gradient,) = torch.autograd.grad(expected.sum() * 0.375, leaf)
    nll, found = mixture_nll_and_gradient(image, decoded, scale=0.375, backend=backend, **options)
    assert (nll.requires_grad, found.requires_grad) == (False, False)
    torch.testing.assert_close(nll, expected.detach(), rtol=0, atol=0)
    torch.testing.assert_close(found, gradient, rtol=0, atol=0)
    assert found.dtype == dtype
    if found.numel() and backend != "reference":
        assert (found.stride(2) == 1) == (decoded.stride(2) == 1)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("form", ["logits elsewhere", "fifth channel", "unaligned"])
def test_channels_last_that_are_no_packs(form: str, backend: str) -> None:
    """A GPU's kernel moves a pixel's colours and logit at once only where it can."""
    channels = 5 if form == "fifth channel" else 4
    size = (2, 3, 5, 7, channels)
    memory = torch.randn(math.prod(size) + 1).to(DEVICE)
    decoded = (memory[1:] if form == "unaligned" else memory[:-1]).view(size).permute(0, 1, 4, 2, 3)
    logits = torch.randn_like(decoded) if form == "logits elsewhere" else decoded
    inputs = {
        "image": torch.rand(2, 3, 5, 7, device=DEVICE),
        "rgb": decoded[:, :, :3].requires_grad_(),
        "mask_logits": logits[:, :, 3:4].detach().requires_grad_(),
    }
    truth = results(cast(inputs, torch.float64), "reference", sigma=0.3)
    for name, value in results(inputs, backend, sigma=0.3).items():
        torch.testing.assert_close(value.double(), truth[name], rtol=1e-4, atol=1e-4, msg=name)


def log_probability(x: Tensor, y: Tensor, logits: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """Of one pixel x [C] under means y [K, C], by PyTorch's own distributions."""
    masks = Categorical(logits=logits)
    if kind == "gaussian":
        return Normal(masks.probs @ y, sigma[0]).log_prob(x).sum()
    if kind == "mixture_joint":
        slots = Independent(Normal(y, sigma[:, None].expand_as(y)), 1)
        return MixtureSameFamily(masks, slots).log_prob(x)
    channels = zip(x, y.unbind(1), strict=True)
    return sum(MixtureSameFamily(masks, Normal(y_c, sigma)).log_prob(x_c) for x_c, y_c in channels)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["sigmoid", "none"])
@pytest.mark.parametrize("per_slot", [False, True], ids=["one-sigma", "sigma-per-slot"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_a_loop_over_pixels(
    kind: Any, per_slot: bool, activation: Any, backend: str
) -> None:
    if per_slot and kind == "gaussian":
        pytest.skip("a Gaussian has one sigma")
    inputs = MixtureNllCase(2, 3, 2, 3).inputs(torch.float64, DEVICE)
    sigmas = torch.tensor([0.1, 0.2, 0.3] if per_slot else [0.2] * 3, dtype=torch.float64)
    sigmas = sigmas.to(DEVICE)
    options = {"kind": kind, "rgb_activation": activation, "backend": backend}
    sigma = sigmas if per_slot else 0.2
    with torch.no_grad():
        actual = mixture_nll(**inputs, sigma=sigma, density=True, **options)
        released = mixture_nll(**inputs, sigma=sigma, **options)
        means = inputs["rgb"].sigmoid() if activation == "sigmoid" else inputs["rgb"]
    for image in range(2):
        expected = torch.zeros((), dtype=torch.float64, device=DEVICE)
        for row, column in itertools.product(range(2), range(3)):
            expected -= log_probability(
                inputs["image"][image, :, row, column],
                means[image, :, :, row, column],
                inputs["mask_logits"].detach()[image, :, 0, row, column],
                sigmas,
                kind,
            )
        torch.testing.assert_close(actual[image], expected)
        constant = 2 * 3 * 3 * math.log(2 * math.pi) / 2
        torch.testing.assert_close(released[image], expected - constant)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["sigmoid", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: Any, activation: Any, backend: str) -> None:
    inputs = MixtureNllCase(2, 3, 2, 2, channels=2).inputs(torch.float64, DEVICE)

    def nll(rgb: Tensor, mask_logits: Tensor) -> Tensor:
        return mixture_nll(
            inputs["image"], rgb, mask_logits,
            sigma=0.3, kind=kind, rgb_activation=activation, backend=backend,
        )  # fmt: skip

    fast = backend == "triton" and DEVICE == "cpu"  # Triton's interpreter is slow
    assert torch.autograd.gradcheck(nll, (inputs["rgb"], inputs["mask_logits"]), fast_mode=fast)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_slot", [False, True], ids=["one-sigma", "sigma-per-slot"])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_and_tiny_sigma_are_finite(kind: Any, per_slot: bool, backend: str) -> None:
    if per_slot and kind == "gaussian":
        pytest.skip("a Gaussian has one sigma")
    extremes = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4], device=DEVICE)
    mask_logits, rgb = torch.cartesian_prod(extremes, extremes, extremes, extremes).split(2, 1)
    inputs = {
        "image": torch.tensor([0.0, 1.0], device=DEVICE).expand(2, 1, 625, 2).contiguous(),
        "rgb": rgb.T[None, :, None, :, None].expand(2, 2, 1, 625, 2).contiguous(),
        "mask_logits": mask_logits.T[None, :, None, :, None].expand(2, 2, 1, 625, 2).contiguous(),
    }
    for name in ("rgb", "mask_logits"):
        inputs[name].requires_grad_()
    sigma = torch.tensor([1e-3, 2e-3], device=DEVICE) if per_slot else 1e-3
    options = {"kind": kind, "sigma": sigma}
    actual = results(inputs, backend, **options)
    for name, value in actual.items():
        assert value.isfinite().all(), name
    if per_slot:
        options["sigma"] = sigma.double()
    truth = results(cast(inputs, torch.float64), "reference", **options)
    for name, value in actual.items():  # float32 scores of 5e5 leave responsibilities 3 % off
        allowed = 1e-2 * truth[name].abs().max().item()
        torch.testing.assert_close(value.double(), truth[name], rtol=0, atol=allowed, msg=name)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("kind", KINDS)
def test_values_beyond_the_range_give_no_nan(kind: Any, backend: str) -> None:
    rgb = torch.tensor([[1e30, -1e30], [3e38, 0.5], [0.5, 0.5], [1e-38, -3e38]], device=DEVICE)
    logits = torch.tensor([[3e38, -3e38], [0.0, 0.0], [-3e38, 3e38], [1e30, 0.0]], device=DEVICE)
    inputs = {
        "image": torch.tensor([0.5, 0.0, 1.0, 0.25], device=DEVICE).view(4, 1, 1, 1),
        "rgb": rgb.view(4, 2, 1, 1, 1).requires_grad_(),
        "mask_logits": logits.view(4, 2, 1, 1, 1).requires_grad_(),
    }
    actual = results(inputs, backend, kind=kind, sigma=0.1, rgb_activation="none")
    assert not any(value.isnan().any() for value in actual.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["image", "rgb", "mask_logits"])
def test_nan_is_not_hidden(name: str, backend: str) -> None:
    inputs = MixtureNllCase(2, 3, 5, 7).inputs(device=DEVICE)
    inputs[name] = inputs[name].detach().clone()
    inputs[name][1, ..., 0] = torch.nan
    nll = mixture_nll(**inputs, sigma=0.1, backend=backend)
    assert nll.isnan().tolist() == [False, True]


def spread(x: Tensor, layout: str) -> Tensor:
    """The same values [B, K, C, H, W] at other places in memory."""
    if layout == "columns":
        return x.mT.contiguous().mT
    if layout == "crop":
        return torch.nn.functional.pad(x, (1, 2, 3, 1))[..., 3:-1, 1:-2]
    if layout == "wide":
        return torch.stack([x, x], dim=-1)[..., 0]
    if layout == "slots-last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if layout == "last" else x.contiguous()


LAYOUTS = ["first", "last", "columns", "crop", "wide", "slots-last"]


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str, backend: str) -> None:
    inputs = MixtureNllCase(2, 3, 5, 9).inputs(device=DEVICE)
    expected = results(inputs, "reference", sigma=0.1)
    inputs["image"] = spread(inputs["image"][:, None], layout)[:, 0]
    for name in ("rgb", "mask_logits"):
        inputs[name] = spread(inputs[name].detach(), layout).requires_grad_()
    for name, value in results(inputs, backend, sigma=0.1).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_may_be_the_last_channel_of_rgb(kind: Any, layout: str, backend: str) -> None:
    inputs = MixtureNllCase(2, 3, 5, 9).inputs(device=DEVICE)
    expected = results(inputs, "reference", sigma=0.1, kind=kind)
    joined = torch.cat([inputs["rgb"].detach(), inputs["mask_logits"].detach()], dim=2)
    joined = spread(joined, layout).requires_grad_()
    actual = results({"image": inputs["image"], "rgb": joined}, backend, sigma=0.1, kind=kind)
    torch.testing.assert_close(actual["nll"], expected["nll"], rtol=1e-5, atol=1e-4)
    grad = actual["grad_rgb"]
    torch.testing.assert_close(grad[:, :, :3], expected["grad_rgb"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad[:, :, 3:], expected["grad_mask_logits"], rtol=1e-4, atol=1e-4)
    if backend != "reference":
        assert grad.stride() == joined.stride()


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_half_precision_is_computed_in_float32(
    layout: Any, dtype: torch.dtype, backend: str
) -> None:
    case = MixtureNllCase(2, 3, 5, 9, layout=layout)
    inputs = cast(case.inputs(device=DEVICE), dtype)
    expected = results(cast(inputs, torch.float32), "reference", sigma=0.1)
    actual = results(inputs, backend, sigma=0.1)
    assert actual["nll"].dtype == torch.float32
    torch.testing.assert_close(actual["nll"], expected["nll"], rtol=1e-5, atol=1e-4)
    for name in ("grad_rgb", "grad_mask_logits"):
        assert actual[name].dtype == dtype
        rounding = torch.finfo(dtype).eps
        torch.testing.assert_close(actual[name].float(), expected[name], rtol=rounding, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_are_promoted_and_autocast_lowers_nothing(backend: str) -> None:
    inputs = MixtureNllCase(2, 3, 5, 9).inputs(device=DEVICE)
    expected = mixture_nll(**inputs, sigma=0.1, backend=backend)
    with torch.autocast(DEVICE, torch.bfloat16):
        torch.testing.assert_close(mixture_nll(**inputs, sigma=0.1, backend=backend), expected)
    inputs["image"] = inputs["image"].double()
    inputs["mask_logits"] = inputs["mask_logits"].detach().half()
    promoted = mixture_nll(**inputs, sigma=0.1, backend=backend)
    assert promoted.dtype == torch.float64
    torch.testing.assert_close(promoted.float(), expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", COMPILED)
def test_random_arguments(data: st.DataObject, backend: str) -> None:
    size = st.integers(0, 6)
    case = MixtureNllCase(
        batch=data.draw(size, "batch"),
        slots=data.draw(st.integers(1, 12), "slots"),
        height=data.draw(size, "height"),
        width=data.draw(st.integers(0, 40), "width"),
        channels=data.draw(st.integers(0, 4), "channels"),
        kind=data.draw(st.sampled_from(KINDS), "kind"),
    )
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), "dtype")
    inputs = cast(case.inputs(device=DEVICE), dtype)
    for name in ("rgb", "mask_logits"):
        layout = data.draw(st.sampled_from(LAYOUTS), f"layout of {name}")
        inputs[name] = spread(inputs[name].detach(), layout).requires_grad_()
    activation = data.draw(st.sampled_from(["sigmoid", "none"]), "activation")
    density = data.draw(st.booleans(), "density")
    options = {"kind": case.kind, "sigma": 0.5, "rgb_activation": activation, "density": density}
    truth = results(cast(inputs, torch.float64), "reference", **options)
    for name, value in results(inputs, backend, **options).items():
        allowed = TOLERANCES[value.dtype]
        torch.testing.assert_close(
            value.double(), truth[name], rtol=allowed, atol=allowed, msg=name
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["mixture", "mixture_joint", "logistic"])
def test_value_and_gradient_in_inference_mode(kind: MixtureKind, backend: str) -> None:
    def computed() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(2, 3, 4, 5, generator=generator).to(DEVICE)
        decoded = torch.randn(2, 3, 4, 4, 5, generator=generator).to(DEVICE)
        return likelihood_and_gradient(image, decoded, kind, 0.3, backend, 0.5)

    expected = computed()
    with torch.inference_mode():
        found = computed()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
