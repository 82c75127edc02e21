"""Triton kernel of mixture_nll: one program takes a block of an image's pixels, all slots at once.

Legend: B batch, K slots, C channels, N pixels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_y(rgb, inside, SIGMOID: tl.constexpr, T: tl.constexpr):
    x = tl.load(rgb, mask=inside, other=0).to(T)
    return 1 / (1 + tl.exp(-x)) if SIGMOID else x


@triton.jit
def _slope(y, SIGMOID: tl.constexpr):
    return y * (1 - y) if SIGMOID else y * 0 + 1


@triton.jit
def _deviation(difference, inverse, LARGEST: tl.constexpr):
    """Limited unless infinite: a loss would leave the range, infinity times a mask of 0 be NaN."""
    deviation = difference * inverse
    deviation = tl.where(deviation > LARGEST, LARGEST, deviation)
    deviation = tl.where(deviation < -LARGEST, -LARGEST, deviation)
    return tl.where(tl.abs(difference) == float("inf"), difference, deviation)


@triton.jit
def mixture_nll_kernel(
    image_ptr, rgb_ptr, mask_ptr, sigma_ptr, scale_ptr, grad_ptr, sums_ptr,
    pixels, blocks, rgb_image, rgb_slot, rgb_channel, rgb_pixel, mask_image, mask_slot, mask_pixel,
    grad_slot, grad_channel, grad_pixel,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr, GAUSSIAN: tl.constexpr, WIDTH: tl.constexpr,
    PER_SLOT: tl.constexpr, SIGMOID: tl.constexpr, WANTED: tl.constexpr, LARGEST: tl.constexpr,
    LOWEST: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum of the negative log-likelihood of a block, and gradients [B, K, C + 1, N].

    Each image's gradient is multiplied by its scale. WIDTH channels share a mixture.
    """
    T: tl.constexpr = image_ptr.dtype.element_ty
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = ((tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    slot = tl.arange(0, BLOCK_K).to(tl.int64)
    is_slot, is_pixel = slot < SLOTS, pixel < pixels
    inside = is_slot[:, None] & is_pixel[None, :]
    image = image_ptr + batch * CHANNELS * pixels + pixel
    rgb = rgb_ptr + batch * rgb_image + slot[:, None] * rgb_slot + pixel[None, :] * rgb_pixel
    masks = mask_ptr + batch * mask_image + slot[:, None] * mask_slot + pixel[None, :] * mask_pixel
    grad = grad_ptr + batch * SLOTS * (CHANNELS + 1) * pixels
    grad += slot[:, None] * grad_slot + pixel[None, :] * grad_pixel
    scale = tl.load(sigma_ptr + slot, mask=is_slot, other=1)
    inverse = (1 / scale)[:, None]

    logits = tl.load(masks, mask=inside, other=0).to(T)
    logits = tl.where(is_slot[:, None], logits, float("-inf"))
    share = logits - tl.max(logits, 0)[None, :]
    weight = tl.exp(share)
    total = tl.sum(weight, 0)[None, :]
    mask = weight / total
    log_mask = share - tl.log(total)
    nll = tl.zeros([BLOCK_N], T)
    grad_scale = tl.load(scale_ptr + batch) if WANTED else 0

    if GAUSSIAN:
        inverse_sigma = 1 / tl.load(sigma_ptr)
        grad_logits = mask * 0
        for c in tl.static_range(CHANNELS):
            y = _load_y(rgb + c * rgb_channel, inside, SIGMOID, T)
            mean = tl.sum(mask * y, 0)
            x = tl.load(image + c * pixels, mask=is_pixel, other=0)
            deviation = _deviation(x - mean, inverse_sigma, LARGEST)
            nll += 0.5 * deviation * deviation
            if WANTED:
                grad_mean = -(deviation * inverse_sigma)[None, :]
                grad_rgb = mask * _slope(y, SIGMOID) * grad_mean
                tl.store(grad + c * grad_channel, grad_rgb * grad_scale, mask=inside)
                grad_logits += mask * (y - mean[None, :]) * grad_mean
    else:
        grad_logits = mask * (CHANNELS // WIDTH)
        for group in tl.static_range(CHANNELS // WIDTH):
            score = log_mask
            if PER_SLOT:
                score -= WIDTH * tl.log(scale)[:, None]
            for i in tl.static_range(WIDTH):
                c = group * WIDTH + i
                y = _load_y(rgb + c * rgb_channel, inside, SIGMOID, T)
                x = tl.load(image + c * pixels, mask=is_pixel, other=0)[None, :]
                deviation = _deviation(x - y, inverse, LARGEST)
                score -= 0.5 * deviation * deviation
            highest = tl.maximum(tl.max(score, 0), LOWEST)  # all slots may be infinitely far off
            weight = tl.exp(score - highest[None, :])
            total = tl.sum(weight, 0)
            nll -= highest + tl.log(total)
            if WANTED:
                responsibility = weight / total[None, :]
                grad_logits -= responsibility
                for i in tl.static_range(WIDTH):
                    c = group * WIDTH + i
                    y = _load_y(rgb + c * rgb_channel, inside, SIGMOID, T)
                    x = tl.load(image + c * pixels, mask=is_pixel, other=0)[None, :]
                    deviation = _deviation(x - y, inverse, LARGEST)
                    grad_rgb = -(responsibility * deviation * _slope(y, SIGMOID)) * inverse
                    tl.store(grad + c * grad_channel, grad_rgb * grad_scale, mask=inside)
    if WANTED:
        tl.store(grad + CHANNELS * grad_channel, grad_logits * grad_scale, mask=inside)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(is_pixel, nll, 0), 0))
