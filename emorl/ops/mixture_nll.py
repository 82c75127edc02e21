"""Negative log-likelihood of an image under a mixture of slots.

Legend: B batch, K slots, C channels, H W image.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.library import register_autograd

from emorl.ops._library import Backend, cast, define_op, resolve

Likelihood = Literal["gaussian", "mixture", "mixture_joint"]
RGBActivation = Literal["sigmoid", "none"]

_ALLOWED = {"kind": get_args(Likelihood), "rgb_activation": get_args(RGBActivation)}
MAX_SLOTS, MAX_CHANNELS = 64, 8  # of the kernels, which keep a pixel's slots in fast memory
_NARROW = (torch.bfloat16, torch.float16)  # read as they are, computed in float32
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def mixture_nll(
    image: Tensor,
    rgb: Tensor,
    mask_logits: Tensor | None = None,
    *,
    sigma: float | Tensor,
    kind: Likelihood = "mixture",
    rgb_activation: RGBActivation = "sigmoid",
    density: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Negative log-likelihood in nats, summed over pixels and channels.

    With masks m = softmax over slots of the logits and means y = sigmoid(rgb):

        gaussian:      -sum_{c,p} log N(x_cp; sum_k m_kp y_kcp, sigma^2)
        mixture:       -sum_{c,p} log sum_k m_kp N(x_cp; y_kcp, sigma_k^2)
        mixture_joint: -sum_p log sum_k m_kp prod_c N(x_cp; y_kcp, sigma_k^2)

    where log N leaves out log(2 pi) / 2 unless `density`, as the released code does.

    Equivalent to `reference`, whose [B, K, C, H, W] temporaries the compiled backends never make:
    a gradient that will be wanted is computed in the same pass, by responsibilities minus masks,
    and only scaled later. Values and gradients are finite for finite arguments, unless they exceed
    the range of the dtype. Sums are accumulated in float32 or wider. On the CPU the result does not
    depend on the number of threads. Rgb and logits that are neighbouring views of one tensor are
    read in place, channels first or last; their gradient has the same order in memory.

    Args:
        image: [B, C, H, W] in [0, 1]. Only the reference differentiates it, and `auto` takes that.
        rgb: appearance before its activation, [B, K, C, H, W].
        mask_logits: [B, K, 1, H, W]. None: they are the last channel of rgb [B, K, C + 1, H, W];
            the gradient is then one tensor, too, and need not be put together.
        sigma: standard deviation of a pixel, > 0: a number, or (not with "gaussian") a tensor [K]
            with one for each slot, whose values are not checked. Not differentiable.
        kind: "gaussian"; "mixture", a mixture for each channel, with shared masks; or
            "mixture_joint", one for all channels of a pixel.
        rgb_activation: "sigmoid", or "none" where rgb holds the means themselves.
        density: Whether to return the full density's, log(2 pi) / 2 more for each value.
        backend: `auto`, `native`, `triton` or `reference`; `emorl.ops.backends()` tells which can
            run.

    Returns:
        [B], in the common dtype of the arguments, but at least float32.

    Raises:
        ValueError: If shapes, dtypes, devices or options do not fit, or the backend cannot run.

    Source: Emami et al. 2021, appendix F, and the released code's utilities; jointly over the
    channels as in Greff et al. 2019 (IODINE).
    """
    _check_options(sigma, kind, rgb_activation)
    masks = rgb[:, :, -1:] if mask_logits is None else mask_logits
    colours = rgb[:, :, :-1] if mask_logits is None else rgb
    _check_shapes(image, colours, masks, sigma)
    wide = reduce(torch.promote_types, (image.dtype, rgb.dtype, masks.dtype), torch.float32)
    slot_sigma = cast(sigma, wide) if isinstance(sigma, Tensor) else None
    chosen = resolve("mixture_nll", backend, rgb, _limits(image, rgb))
    if chosen == "reference":
        return reference(
            cast(image, wide),
            cast(colours, wide),
            cast(masks, wide),
            sigma=sigma if slot_sigma is None else slot_sigma,
            kind=kind,
            rgb_activation=rgb_activation,
            density=density,
        )
    narrow = rgb.dtype in _NARROW and masks.dtype == rgb.dtype and wide == torch.float32
    dtype = rgb.dtype if narrow else wide
    op = torch.ops.emorl.mixture_nll_triton if chosen == "triton" else torch.ops.emorl.mixture_nll
    nll, _ = op.default(
        cast(image, wide),
        cast(rgb, dtype),
        None if mask_logits is None else cast(mask_logits, dtype),
        slot_sigma,
        1.0 if isinstance(sigma, Tensor) else sigma,
        kind,
        rgb_activation == "sigmoid",
        density,
        torch.is_grad_enabled() and (rgb.requires_grad or masks.requires_grad),
    )
    return nll


def reference(
    image: Tensor,
    rgb: Tensor,
    mask_logits: Tensor,
    *,
    sigma: float | Tensor,
    kind: Likelihood = "mixture",
    rgb_activation: RGBActivation = "sigmoid",
    density: bool = False,
) -> Tensor:
    """Plain PyTorch form of `mixture_nll`, of the same arguments."""
    y = rgb.sigmoid() if rgb_activation == "sigmoid" else rgb
    constant = constant_of(image, sigma, density)
    if kind == "gaussian":
        mean = (mask_logits.softmax(dim=1) * y).sum(dim=1)
        return (image - mean).square().sum(dim=(1, 2, 3)) / (2 * sigma**2) + constant
    error = (image[:, None] - y).square()
    if isinstance(sigma, Tensor):
        sigma = sigma.view(-1, 1, 1, 1)
        error = error / (2 * sigma**2) + sigma.log()
    else:
        error = error / (2 * sigma**2)
    if kind == "mixture_joint":
        error = error.sum(dim=2, keepdim=True)
    log_likelihood = (mask_logits.log_softmax(dim=1) - error).logsumexp(dim=1)
    return constant - log_likelihood.sum(dim=(1, 2, 3))


def constant_of(image: Tensor, sigma: float | Tensor, density: bool) -> float:
    """What every image's negative log-likelihood contains, whatever the slots."""
    log_scale = 0.0 if isinstance(sigma, Tensor) else math.log(sigma)
    return (log_scale + density * _HALF_LOG_2PI) * math.prod(image.shape[1:])


def _check_options(sigma: float | Tensor, kind: str, rgb_activation: str) -> None:
    for name, value in (("kind", kind), ("rgb_activation", rgb_activation)):
        if value not in _ALLOWED[name]:
            expected = ", ".join(_ALLOWED[name])
            raise ValueError(f"mixture_nll: {name}: expected one of {expected}, got {value!r}")
    if not isinstance(sigma, Tensor):
        if not 0 < sigma < math.inf:
            raise ValueError(f"mixture_nll: sigma: expected a number > 0, got {sigma}")
    elif kind == "gaussian":
        raise ValueError('mixture_nll: sigma: expected a number for kind "gaussian", got a tensor')
    elif sigma.requires_grad:
        raise ValueError("mixture_nll: sigma is not differentiable: pass sigma.detach()")


def _check_shapes(image: Tensor, rgb: Tensor, masks: Tensor, sigma: float | Tensor) -> None:
    if not (
        image.dim() == 4
        and rgb.dim() == masks.dim() == 5
        and rgb.shape[1] > 0
        and rgb.shape == (image.shape[0], rgb.shape[1], *image.shape[1:])
        and masks.shape == (*rgb.shape[:2], 1, *rgb.shape[3:])
    ):
        got = ", ".join(str(list(tensor.shape)) for tensor in (image, rgb, masks))
        raise ValueError(
            "mixture_nll: expected image [B,C,H,W], rgb [B,K,C,H,W] and mask_logits [B,K,1,H,W] "
            f"with K > 0, got {got}"
        )
    tensors = {"image": image, "rgb": rgb, "mask_logits": masks}
    if isinstance(sigma, Tensor):
        tensors["sigma"] = sigma
        if sigma.shape != rgb.shape[1:2]:
            raise ValueError(
                f"mixture_nll: sigma: expected {list(rgb.shape[1:2])}, got {list(sigma.shape)}"
            )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"mixture_nll: {name}: expected floating point, got {tensor.dtype}")
        if tensor.device != rgb.device:
            raise ValueError(f"mixture_nll: {name}: expected {rgb.device}, got {tensor.device}")


def _limits(image: Tensor, rgb: Tensor) -> dict[str, str | None]:
    """Why the compiled backends cannot run, if they cannot."""
    slots, channels, reason = rgb.shape[1], image.shape[1], None
    if slots > MAX_SLOTS or channels > MAX_CHANNELS:
        reason = (
            f"at most {MAX_SLOTS} slots and {MAX_CHANNELS} channels, got {slots} and {channels}"
        )
    elif image.requires_grad and torch.is_grad_enabled():
        reason = "no gradient of the image, which requires one"
    return {"native": reason, "triton": reason}


def new_gradient(rgb: Tensor, channels: int) -> Tensor:
    """Room for the gradient of rgb and logits, [B, K, C + 1, H, W]; channels last where rgb is."""
    batch, slots, _, height, width = rgb.shape
    dtype = torch.promote_types(rgb.dtype, torch.float32)
    if rgb.stride(2) == 1:
        last = rgb.new_empty(batch, slots, height, width, channels + 1, dtype=dtype)
        return last.permute(0, 1, 4, 2, 3)
    return rgb.new_empty(batch, slots, channels + 1, height, width, dtype=dtype)


def _fake(
    image: Tensor,
    rgb: Tensor,
    mask_logits: Tensor | None,
    slot_sigma: Tensor | None,
    sigma: float,
    kind: str,
    sigmoid: bool,
    density: bool,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    grad = new_gradient(rgb, image.shape[1]) if wanted else image.new_empty(0)
    return image.new_empty(image.shape[0]), grad


def _fake_backward(grad_nll: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(grad, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, rgb, mask_logits, *_, ctx.wanted = inputs
    ctx.channels, ctx.dtype, ctx.joined = image.shape[1], rgb.dtype, mask_logits is None
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for output[1] would be as large as it is
    ctx.save_for_backward(output[1])


def _register_gradient(op: str, library: torch.library.Library) -> None:
    """One gradient, computed in the forward pass, for both rgb and mask logits."""
    backward_op = getattr(torch.ops.emorl, f"{op}_backward").default

    def gradient(ctx: Any, grad_nll: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_nll is None:
            return (None,) * 9
        if not ctx.wanted or ctx.needs_input_grad[0]:
            raise RuntimeError("mixture_nll: this gradient was not asked for in the forward pass")
        grad = backward_op(grad_nll, *ctx.saved_tensors, ctx.dtype)
        if ctx.joined:
            return None, grad, *[None] * 7
        return None, grad[:, :, : ctx.channels], grad[:, :, ctx.channels :], *[None] * 6

    register_autograd(f"emorl::{op}", gradient, setup_context=_setup_context, lib=library)


define_op(
    "mixture_nll",
    schema="(Tensor image, Tensor rgb, Tensor? mask_logits, Tensor? slot_sigma, float sigma, "
    "str kind, bool sigmoid, bool density, bool wanted) -> (Tensor nll, Tensor grad)",
    schema_backward="(Tensor grad_nll, Tensor grad, ScalarType dtype) -> Tensor",
    fake=_fake,
    fake_backward=_fake_backward,
    gradient=_register_gradient,
)
