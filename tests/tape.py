"""What a CUDA graph does to a step, on the CPU: the same operators on the same memory again.

As in a capture, what is recorded leaves nothing behind, Python's numbers stay as they were, and
the value of a tensor cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Call(NamedTuple):
    """An operator's call; `results` are those that share no memory with its arguments, by place."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: dict[int, Tensor]


class Tape(TorchDispatchMode):
    """Records calls while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a captured step read a tensor's value")
        arguments = _tensors((args, kwargs))
        if func._schema.is_mutable:
            self._keep(x for _, x in arguments)
        result = func(*args, **(kwargs or {}))
        taken = {_memory(x) for _, x in arguments}
        results = {place: x for place, x in _tensors(result) if _memory(x) not in taken}
        self._made |= {_memory(x) for x in results.values()}
        self.calls.append(Call(func, args, kwargs or {}, results))
        return result

    def _keep(self, tensors: Iterable[Tensor]) -> None:
        for x in tensors:
            if _memory(x) not in self._made and id(x) not in self._before:
                self._before[id(x)] = (x, x.detach().clone())

    def undo(self) -> None:
        """Give what was there before the recording its values back."""
        for tensor, value in self._before.values():
            tensor.detach().copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for call in self.calls:
            again = call.function(*call.args, **call.kwargs)
            if call.results:
                leaves = tree_leaves(again)
                for place, recorded in call.results.items():
                    recorded.detach().copy_(leaves[place])


def capture(body: Callable[[], Tensor], noise: torch.Generator) -> Callable[[], Tensor]:
    """Stands for `emorl.training.graph.capture`."""
    state = noise.get_state()
    with Tape() as tape:
        row = body()
    tape.undo()
    noise.set_state(state)

    def replay() -> Tensor:
        tape.replay()
        return row

    return replay


def _tensors(values: Any) -> list[tuple[int, Tensor]]:
    return [(i, x) for i, x in enumerate(tree_leaves(values)) if isinstance(x, Tensor)]


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
