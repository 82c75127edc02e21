"""Negative log-likelihood of an image under a mixture of slots.

Legend: B batch, K slots, C channels, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from emorl.ops import library
from emorl.ops.arguments import (
    number,
    require_device,
    require_flag,
    require_floating,
    require_tensors,
)
from emorl.ops.library import (
    NARROW,
    NO_SECOND_DERIVATIVE,
    Backend,
    Gradient,
    cast,
    define_op,
    derivative_obstacle,
    recordable,
    refuse_tangents,
    resolve,
)

Likelihood = Literal["gaussian", "mixture", "mixture_joint"]
RGBActivation = Literal["sigmoid", "none"]

_ALLOWED = {"kind": get_args(Likelihood), "rgb_activation": get_args(RGBActivation)}
MAX_SLOTS, MAX_CHANNELS = 64, 8  # of the kernels, which keep a pixel's slots in fast memory
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

    Equivalent to `reference`, whose [B, K, C, H, W] temporaries the compiled backends never make.
    On a GPU nothing of that size is kept for the backward pass but the inputs: from them it
    computes the gradient, by responsibilities minus masks, and writes it once. The CPU, for which
    arithmetic costs more than bytes, computes it in the forward pass and scales it later, unless
    the slots are narrow. Who knows the scale takes `mixture_nll_and_gradient`, which reads the
    inputs once for both.

    Values and gradients are finite for finite arguments, unless they exceed the range of the dtype.
    Native kernels take a deviation for 4e18 sigmas at most (float32), so that its square stays
    finite where the reference's becomes infinite.
    Sums are accumulated in float32 or wider. On the CPU the result does not depend on the number of
    threads. Rgb and logits that are neighbouring views of one tensor are read in place, channels
    first or last; their gradient has the same order in memory.

    Args:
        image: [B, C, H, W] in [0, 1]. Only the reference differentiates it, and `auto` takes that.
        rgb: appearance before its activation, [B, K, C, H, W].
        mask_logits: [B, K, 1, H, W]. None: they are the last channel of rgb [B, K, C + 1, H, W];
            the gradient is then one tensor, too.
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
    arguments = _arguments(image, rgb, mask_logits, sigma, kind, rgb_activation, density)
    chosen = resolve("mixture_nll", backend, arguments.tensors(), _limits(image, rgb))
    if chosen == "reference":
        return _reference_of(arguments)
    arguments = arguments.as_stored()
    nll, _ = _operator(chosen)(*arguments, 1.0 if _keeps_gradient(arguments, chosen) else None)
    return nll


def mixture_nll_and_gradient(
    image: Tensor,
    decoded: Tensor,
    *,
    scale: float,
    sigma: float | Tensor,
    kind: Likelihood = "mixture",
    rgb_activation: RGBActivation = "sigmoid",
    density: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`mixture_nll`, and the gradient of `scale` times its sum over the images, from one read.

    For a loss that is differentiated at once, as `emorl.nn.score_once` does. Bytes that move for
    each pixel and slot with three channels, float32 / bfloat16:

        a float32 gradient from the forward pass, scaled in the backward   64 / 48
        the gradient from the inputs, read twice (`mixture_nll`)           48 / 24
        the scale known beforehand (here)                                  32 / 16

    Neither result is differentiable.

    Args:
        image: as in `mixture_nll`.
        decoded: rgb and, in the last channel, mask logits, [B, K, C + 1, H, W].
        scale: factor of the gradient: 1 / B for that of the mean.
        sigma: as in `mixture_nll`, as are all that follow.
        kind: "gaussian", "mixture" or "mixture_joint".
        rgb_activation: "sigmoid" or "none".
        density: whether the value is the full density's.
        backend: `auto`, `native`, `triton` or `reference`.

    Returns:
        The values, [B], as `mixture_nll` returns them, and the gradient with respect to `decoded`,
        of its shape, dtype and order in memory.

    Raises:
        ValueError: As `mixture_nll` does, and within transforms of `torch.func` that differentiate.
    """
    require_tensors("mixture_nll", {"image": image, "decoded": decoded})
    scale = number("mixture_nll", "scale", scale)
    arguments = _arguments(
        image.detach(), decoded.detach(), None, sigma, kind, rgb_activation, density
    )
    if derivative_obstacle((image, decoded, arguments.slot_sigma)) is not None:
        raise ValueError(
            "mixture_nll_and_gradient: expected no derivative of its results, got one of "
            "torch.func or of forward mode; mixture_nll is differentiable"
        )
    limits = _limits(arguments.image, arguments.rgb)
    chosen = resolve("mixture_nll", backend, arguments.tensors(), limits)
    if chosen != "reference":
        nll, gradient = _operator(chosen)(*arguments.as_stored(), scale)
        return nll, cast(gradient, decoded.dtype)
    return _reference_and_gradient(arguments, scale)


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


class _Arguments(NamedTuple):
    """Of the operator, in its order."""

    image: Tensor
    rgb: Tensor
    mask_logits: Tensor | None
    slot_sigma: Tensor | None
    sigma: float
    kind: Likelihood
    sigmoid: bool
    density: bool

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Rgb, and the other tensors."""
        return (self.rgb, self.image, self.mask_logits, self.slot_sigma)

    def dtype(self) -> torch.dtype:
        """In which the image is read, and everything computed."""
        tensors = [x for x in self[:3] if isinstance(x, Tensor)]
        return reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)

    def as_stored(self) -> _Arguments:
        """With the dtypes that the compiled backends read: narrow slots as they are."""
        image, rgb, masks, slot_sigma, *_ = self
        wide = self.dtype()
        same = masks is None or masks.dtype == rgb.dtype
        dtype = rgb.dtype if same and rgb.dtype in NARROW and wide == torch.float32 else wide
        return self._replace(
            image=cast(image, wide),
            rgb=cast(rgb, dtype),
            mask_logits=None if masks is None else cast(masks, dtype),
            slot_sigma=None if slot_sigma is None else cast(slot_sigma, wide),
        )


def _arguments(
    image: Tensor,
    rgb: Tensor,
    mask_logits: Tensor | None,
    sigma: float | Tensor,
    kind: Likelihood,
    rgb_activation: RGBActivation,
    density: bool,
) -> _Arguments:
    """The arguments, checked."""
    sigma = _checked_sigma(sigma, kind)
    _check_options(kind, rgb_activation, density)
    tensors = {"image": image, "rgb": rgb, "mask_logits": mask_logits}
    require_tensors("mixture_nll", tensors, ("mask_logits",))
    if mask_logits is None and rgb.dim() != 5:
        raise ValueError(f"mixture_nll: expected slots [B,K,C + 1,H,W], got {list(rgb.shape)}")
    _check_shapes(image, *_colours_and_masks(rgb, mask_logits), sigma)
    slot_sigma, sigma = (sigma, 1.0) if isinstance(sigma, Tensor) else (None, sigma)
    sigmoid = rgb_activation == "sigmoid"
    return _Arguments(image, rgb, mask_logits, slot_sigma, sigma, kind, sigmoid, density)


def _colours_and_masks(rgb: Tensor, mask_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    return (rgb[:, :, :-1], rgb[:, :, -1:]) if mask_logits is None else (rgb, mask_logits)


def _keeps_gradient(arguments: _Arguments, backend: str) -> bool:
    """Whether the forward pass computes the gradient, as the CPU's does where none is rounded."""
    _, rgb, masks, *_ = arguments
    wanted = rgb.requires_grad or (masks is not None and masks.requires_grad)
    on_cpu = backend == "native" and not library.on_gpu(rgb)
    return on_cpu and torch.is_grad_enabled() and wanted and rgb.dtype not in NARROW


def _operator(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    ops = torch.ops.emorl
    op = ops.mixture_nll_triton if backend == "triton" else ops.mixture_nll
    operator: Callable[..., tuple[Tensor, Tensor]] = op.default
    return operator


def _reference_of(arguments: _Arguments) -> Tensor:
    image, rgb, mask_logits, slot_sigma, sigma, kind, sigmoid, density = arguments
    dtype = arguments.dtype()
    colours, masks = _colours_and_masks(rgb, mask_logits)
    return reference(
        cast(image, dtype),
        cast(colours, dtype),
        cast(masks, dtype),
        sigma=sigma if slot_sigma is None else cast(slot_sigma, dtype),
        kind=kind,
        rgb_activation="sigmoid" if sigmoid else "none",
        density=density,
    )


def _reference_and_gradient(arguments: _Arguments, scale: float) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        image, rgb, _, slot_sigma, *_ = arguments
        leaf = recordable(rgb).detach().requires_grad_()
        slot_sigma = None if slot_sigma is None else recordable(slot_sigma).detach()
        usual = arguments._replace(
            image=recordable(image).detach(), rgb=leaf, slot_sigma=slot_sigma
        )
        nll = _reference_of(usual)
        (gradient,) = torch.autograd.grad(nll.sum() * scale, leaf)
    return nll.detach(), gradient


def constant_of(image: Tensor, sigma: float | Tensor, density: bool) -> float:
    """What every image's negative log-likelihood contains, whatever the slots."""
    log_scale = 0.0 if isinstance(sigma, Tensor) else math.log(sigma)
    return (log_scale + density * _HALF_LOG_2PI) * math.prod(image.shape[1:])


def _check_options(kind: str, rgb_activation: str, density: bool) -> None:
    require_flag("mixture_nll", "density", density)
    for name, value in (("kind", kind), ("rgb_activation", rgb_activation)):
        if value not in _ALLOWED[name]:
            expected = ", ".join(_ALLOWED[name])
            raise ValueError(f"mixture_nll: {name}: expected one of {expected}, got {value!r}")


def _checked_sigma(sigma: float | Tensor, kind: str) -> float | Tensor:
    if not isinstance(sigma, Tensor):
        return number("mixture_nll", "sigma", sigma, positive=True)
    require_tensors("mixture_nll", {"sigma": sigma})
    if kind == "gaussian":
        raise ValueError('mixture_nll: sigma: expected a number for kind "gaussian", got a tensor')
    if sigma.requires_grad:
        raise ValueError("mixture_nll: sigma is not differentiable: pass sigma.detach()")
    return sigma


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
    require_floating("mixture_nll", tensors)
    require_device("mixture_nll", tensors, rgb.device)


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
    if rgb.stride(2) == 1:
        return rgb.new_empty(batch, slots, height, width, channels + 1).permute(0, 1, 4, 2, 3)
    return rgb.new_empty(batch, slots, channels + 1, height, width)


def _fake(
    image: Tensor,
    rgb: Tensor,
    mask_logits: Tensor | None,
    slot_sigma: Tensor | None,
    sigma: float,
    kind: str,
    sigmoid: bool,
    density: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    grad = rgb.new_empty(0) if scale is None else new_gradient(rgb, image.shape[1])
    return image.new_empty(image.shape[0]), grad


def _fake_backward(
    grad_nll: Tensor,
    kept: Tensor | None,
    image: Tensor | None,
    rgb: Tensor | None,
    mask_logits: Tensor | None,
    slot_sigma: Tensor | None,
    sigma: float,
    kind: str,
    sigmoid: bool,
) -> Tensor:
    if kept is not None:
        return torch.empty_like(kept)
    assert image is not None
    assert rgb is not None
    return new_gradient(rgb, image.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, _, mask_logits, _, *options, _, scale = inputs
    kept = scale == 1  # alone: nothing else is alive until the backward pass
    ctx.save_for_backward(*((output[1], *[None] * 4) if kept else (None, *inputs[:4])))
    ctx.channels, ctx.joined, ctx.options = image.shape[1], mask_logits is None, options
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for output[1] would be as large as it is


def _gradient(op: str) -> Gradient:
    """One gradient for both rgb and mask logits, from what was kept of the arguments."""
    backward_op = getattr(torch.ops.emorl, f"{op}_backward").default

    def gradient(ctx: Any, grad_nll: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_nll is None:
            return (None,) * 9
        if ctx.needs_input_grad[0]:
            raise RuntimeError("mixture_nll: only the reference differentiates the image")
        if ctx.saved_tensors[0] is not None and torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(NO_SECOND_DERIVATIVE.format("mixture_nll"))
        refuse_tangents("mixture_nll", (grad_nll,))
        grad = backward_op(grad_nll, *ctx.saved_tensors, *ctx.options)
        if ctx.joined:
            return None, grad, *[None] * 7
        return None, grad[:, :, : ctx.channels], grad[:, :, ctx.channels :], *[None] * 6

    return Gradient(_setup_context, gradient)


define_op(
    "mixture_nll",
    schema="(Tensor image, Tensor rgb, Tensor? mask_logits, Tensor? slot_sigma, float sigma, "
    "str kind, bool sigmoid, bool density, float? scale) -> (Tensor nll, Tensor grad)",
    schema_backward="(Tensor grad_nll, Tensor? kept, Tensor? image, Tensor? rgb, "
    "Tensor? mask_logits, Tensor? slot_sigma, float sigma, str kind, bool sigmoid) -> Tensor",
    fake=_fake,
    fake_backward=_fake_backward,
    gradient=_gradient,
)
