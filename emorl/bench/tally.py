"""A tally of the multiply-accumulates of whatever runs, by the shapes of the tensors.

Shapes: B images, C and D channels, H W pixels, K slots, N pixels of an image, E width of values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import emorl.ops  # noqa: F401 (declares the operators)
from emorl.ops.slot_iterations import IterationWeights

_WEIGHTS = len(IterationWeights._fields)


class Tally(TorchDispatchMode):
    """A context that counts the multiply-accumulates of convolutions and matrix products.

    `torch.utils.flop_counter.FlopCounterMode`, whose formulas these are, refuses gradients that
    are taken within a forward pass, as refinement does.

    Attributes:
        convolutions: by the part of the network (its child module) whose weights they have.
        products: of matrices.

    Args:
        network: the owner of the weights.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.convolutions: Counter[str] = Counter()
        self.products = 0
        self._parts = {  # by memory, which slices of a weight share
            weight.untyped_storage()._cdata: name.split(".")[0]
            for name, weight in network.named_parameters()
        }
        self._turned: list[Tensor] = []  # kept, so that their memory is nobody else's

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output, packet = operator(*args, **kwargs), operator.overloadpacket
        if formula := _OPERATORS.get(packet) or flop_registry.get(packet):
            work = formula(*args, **kwargs, out_val=output) // 2
            if "convolution" in str(packet):
                self.convolutions[self._part(args)] += work
            else:
                self.products += work
        elif packet is torch.ops.aten.flip and (part := self._parts_of(args)):
            self._parts[output.untyped_storage()._cdata] = part.pop()
            self._turned.append(output)
        return output

    def _part(self, args: tuple[Any, ...]) -> str:
        (part,) = self._parts_of(args)
        return part

    def _parts_of(self, args: tuple[Any, ...]) -> set[str]:
        """Those whose weights, or weights turned round, are among arguments."""
        tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        memory = {x.untyped_storage()._cdata for x in tensors}
        return {self._parts[x] for x in memory & self._parts.keys()}


def _winograd(weight: Tensor, images: Tensor) -> int:
    """Twice the products of weights [D, C, k, k] that give images, by tiles as in csrc/cpu."""
    batch, _, height, width = images.shape
    of_rows = 36 * -(-height // 4) if weight.shape[2] == 3 else 40 * height
    return 2 * batch * of_rows * -(-width // 4) * weight.shape[0] * weight.shape[1]


def _convolution(x: Tensor, weight: Tensor, *_: Any, out_val: Tensor) -> int:
    return _winograd(weight, out_val)


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *others: Any, out_val: Any
) -> int:
    of_x, *of_weights = others[-1]  # which gradients are wanted
    return of_x * _winograd(weight, x) + any(of_weights) * _winograd(weight, grad)


def _slot_attention(q: Tensor, k: Tensor, v: Tensor | None, *_: Any, out_val: Any) -> int:
    width = k.shape[2] + (k if v is None else v).shape[2]
    return 2 * q.shape[0] * q.shape[1] * k.shape[1] * width


def _slot_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor | None, *others: Any, out_val: Any
) -> int:
    """Twice the products: the attention once more, its gradient, and those that are wanted."""
    of_q, of_k, of_v, _ = others[-1]
    of_v = of_k if v is None else of_v
    width = (1 + of_q + of_k) * k.shape[2] + (1 + of_v) * grad.shape[2]
    return 2 * q.shape[0] * q.shape[1] * k.shape[1] * width


def _slot_iterations(x: Tensor, slots: Tensor, *others: Any, out_val: tuple[Tensor, ...]) -> int:
    times = others[-2]
    return 2 * times * _of_an_iteration(x, slots, others[:_WEIGHTS], attention=2)


def _slot_iterations_backward(
    grad: Tensor, x: Tensor, slots: Tensor, *others: Any, out_val: Any
) -> int:
    """Twice the products: gradients of what a weight is multiplied by, and those of weights."""
    weights, wanted = others[:_WEIGHTS], others[-1]
    of_weights = [
        w for w, wants in zip(weights, wanted[2:], strict=True) if wants and w is not None
    ]
    times, rows = len(grad), slots[..., 0].numel()
    of_rows = _of_an_iteration(x, slots, weights, attention=3 + 2 * wanted[0])
    return 2 * times * (of_rows + rows * sum(w.numel() for w in of_weights if w.dim() == 2))


def _of_an_iteration(x: Tensor, slots: Tensor, weights: tuple[Any, ...], attention: int) -> int:
    """Products of an iteration's slots with each matrix, and of attention's with the inputs."""
    matrices = sum(w.numel() for w in weights if w is not None and w.dim() == 2)
    return slots[..., 0].numel() * (matrices + attention * x.shape[1] * x.shape[2])


_OPERATORS: dict[Any, Callable[..., int]] = {  # on the CPU
    torch.ops.emorl.convolution: _convolution,
    torch.ops.emorl.convolution_backward: _convolution_backward,
    torch.ops.emorl.slot_attention: _slot_attention,
    torch.ops.emorl.slot_attention_backward: _slot_attention_backward,
    torch.ops.emorl.slot_iterations: _slot_iterations,
    torch.ops.emorl.slot_iterations_backward: _slot_iterations_backward,
}
