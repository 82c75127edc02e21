"""Whether what is differentiated apart from the rest leaves anything out.

A score's gradients are taken with respect to named tensors and kept; what else is behind it, such
as a weight that a hook brings in, would get no gradient, and nobody would be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def require_known(output: Tensor, known: Sequence[Tensor]) -> None:
    """Hold a result to what it may be differentiated by.

    Args:
        output: whose graph is looked at.
        known: where its graph may end; what is behind these is no matter.

    Raises:
        ValueError: if it ends in another tensor that requires gradients.
    """
    own = {id(x) for x in known if x.is_leaf}
    # As of PyTorch 2.13 a node is one object in Python for as long as something holds it.
    ends = {(x.grad_fn, x.output_nr) for x in known if not x.is_leaf}
    seen: set[Any] = {None}
    ahead: list[Any] = [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = None if node.next_functions else getattr(node, "variable", None)
        if variable is not None and id(variable) not in own:
            raise ValueError(
                "decoder: expected gradients for its own parameters alone, got a tensor "
                f"{[*variable.shape]} of elsewhere that requires gradients: register it as a "
                "parameter of the decoder, or detach it"
            )
        ahead += [edge[0] for edge in node.next_functions if edge not in ends]
