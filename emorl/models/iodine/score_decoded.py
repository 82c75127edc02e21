"""Score slots whose decoded images are also the input of a network that is trained.

`score_once` takes the decoder's final gradients as soon as it has scored. Where a network reads the
decoded images of a step, their gradient is known only in the final backward pass. So refinement
gets d NLL / d slots at once, without the weights' gradients, all activations are freed, and the
final backward pass decodes once more: one backward pass through the decoder then serves the
likelihood's gradient and the images' together.

Keeping the activations of every step until the end, as plain autograd does, costs one forward and
two backward passes of the decoder per step, one of them without weights. Freeing them costs one
forward pass more, and two images of 4 channels per slot and step stay in memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from emorl.nn.posterior import frozen, gradients, leaves, require_known
from emorl.ops.library import autocasts, full_precision

Decode = Callable[..., Tensor]  # decode(slots [M, D], *shared) -> decoded
# From what was decoded to the NLL of each image, differentiable; or, with a number, the gradient of
# that number times their sum as well.
Likelihood = Callable[[Tensor, float | None], tuple[Tensor, Tensor | None]]

_DROPOUT = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


class DecodedScore(NamedTuple):
    """The likelihood of a chunk of the images, and what was decoded for it.

    Attributes:
        nll: sum over these images divided by the batch, in nats; differentiable with respect to
            slots and weights.
        decoded: what the decoder returned; differentiable likewise.
        nll_per_image: [images], detached.
        gradient: d nll / d slots, [M, D], detached.
        decoded_gradient: d nll / d decoded, detached.
    """

    nll: Tensor
    decoded: Tensor
    nll_per_image: Tensor
    gradient: Tensor
    decoded_gradient: Tensor


class Repeatable:
    """A function that draws the same numbers from the global generators whenever it is called.

    After every call but the first the generators stand as before it. While a CUDA graph is captured
    their state cannot be read: there networks that draw keep their activations (`repeatable`).

    Args:
        function: to call.
        device: that it runs on.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function = function
        self._cuda = [device] if device.type == "cuda" else []
        self._called = False
        self._before: list[Tensor] = []  # none where the first call drew no number

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The function's result."""
        if capturing() or torch.compiler.is_compiling():
            return self._function(*arguments)
        if not self._called:
            before = self._states()
            result = self._function(*arguments)
            if list(map(_bytes, before)) != list(map(_bytes, self._states())):
                self._before = before
            self._called = True
            return result
        with torch.random.fork_rng(self._cuda, enabled=bool(self._before)):
            if self._before:
                torch.set_rng_state(self._before[0])
            for device, state in zip(self._cuda, self._before[1:], strict=False):
                torch.cuda.set_rng_state(state, device)
            return self._function(*arguments)

    def _states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda)]


def _bytes(state: Tensor) -> bytes:
    """A generator's state, without an operation of torch, which would wait or be recorded."""
    return ctypes.string_at(state.data_ptr(), state.numel())


def capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def repeatable(*networks: nn.Module) -> bool:
    """Whether networks can be run once more with the numbers that they drew.

    Dropout is what a captured network is asked for; elsewhere all random numbers are repeated. What
    a call changes in the network is not (spectral norm's estimate goes on), and neither are weights
    that stand in for its own during a call alone, as those of `torch.func.functional_call`.
    """
    weights = (weight for network in networks for weight in network.parameters())
    if not all(isinstance(weight, nn.Parameter) for weight in weights):
        return False
    layers = [layer for network in networks for layer in network.modules() if layer.training]
    drops = (isinstance(x, _DROPOUT) and x.p > 0 for x in layers)
    return not (any(map(_goes_on, layers)) or (capturing() and any(drops)))


def _goes_on(layer: nn.Module) -> bool:
    """Whether a layer's weights may be others at the next call."""
    hooks = layer._forward_pre_hooks.values()
    if isinstance(layer, ParametrizationList) and [*layer.buffers()]:
        return True
    return any(isinstance(hook, SpectralNorm) for hook in hooks)


class _ScoreDecoded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        decode: Decode,
        likelihood: Likelihood,
        batch: int,
        num_shared: int,
        learn: bool,
        slots: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        shared, weights = inputs[:num_shared], inputs[num_shared:]
        with torch.enable_grad(), frozen(weights):
            leaf = slots.detach().requires_grad_()
            output = decode(leaf, *(x.detach() for x in shared))
            if learn:
                require_known(output, [leaf])
            nll, decoded_gradient = likelihood(output.detach(), 1 / batch)
            assert decoded_gradient is not None  # since the scale was given
            with full_precision(nll):
                (slots_gradient,) = torch.autograd.grad(output, leaf, decoded_gradient)
        kind = slots.device.type
        ctx.autocast = nullcontext()
        if autocasts(slots):
            ctx.autocast = torch.autocast(kind, torch.get_autocast_dtype(kind))
        ctx.decode, ctx.num_shared = decode, num_shared
        ctx.save_for_backward(slots, decoded_gradient, *inputs)
        ctx.mark_non_differentiable(nll, slots_gradient, decoded_gradient)
        return nll.sum() / batch, output.detach(), nll, slots_gradient, decoded_gradient

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_nll: Tensor, grad_decoded: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        slots, decoded_gradient, *inputs = ctx.saved_tensors
        shared, weights = leaves(inputs[: ctx.num_shared]), inputs[ctx.num_shared :]
        with torch.enable_grad(), ctx.autocast:
            leaf = slots.detach().requires_grad_()
            decoded = ctx.decode(leaf, *shared)
            require_known(decoded, (leaf, *shared, *weights))
        seed = grad_decoded + grad_nll * decoded_gradient
        found = gradients(decoded, (leaf, *shared, *weights), seed)
        return None, None, None, None, None, *found


def score_decoded(
    decode: Decode,
    likelihood: Likelihood,
    slots: Tensor,
    weights: Sequence[Tensor] | None,
    batch: int,
    keep_activations: bool = False,
    shared: Sequence[Tensor] = (),
) -> DecodedScore:
    """Decode and score slots, keeping what was decoded.

    Args:
        decode: from slots [M, D], and `shared`, to whatever is scored; called again in the backward
            pass, with the same random numbers.
        likelihood: from that to NLLs.
        slots: [M, D], those of an image one after the other.
        weights: the parameters that `decode` uses and that are to be trained; None where nothing
            is trained.
        batch: number of images of the whole batch, whose mean NLL is differentiated.
        keep_activations: keep the decoder's, too, instead of decoding again.
        shared: what `decode` takes besides, computed once for several calls.

    Raises:
        ValueError: if `decode` uses something else that requires gradients, which would be cut.
    """
    if keep_activations and torch.is_grad_enabled():
        decoded = decode(slots, *shared)
        nll, _ = likelihood(decoded, None)
        mean = nll.sum() / batch
        with full_precision(mean):
            (decoded_gradient,) = torch.autograd.grad(mean, decoded, retain_graph=True)
            (slots_gradient,) = torch.autograd.grad(
                decoded, slots, decoded_gradient, retain_graph=True
            )
        return DecodedScore(mean, decoded, nll.detach(), slots_gradient, decoded_gradient)
    inputs = (slots, *shared, *(weights or ()))
    decode, learn = Repeatable(decode, slots.device), weights is not None
    return DecodedScore(
        *_ScoreDecoded.apply(decode, likelihood, batch, len(shared), learn, *inputs)
    )
