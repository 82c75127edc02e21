"""What the modules of all packages share: options that can be assigned, or say that they cannot.

A user of a package may write `module.eps = 0.01`. Where the originals' forward pass reads such an
attribute, ours does what theirs does, or raises an AttributeError; nothing is without effect.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from emorl.nn.slot_iterations import SlotRules


def rule(name: str) -> Any:
    """An attribute that is a field of the module's `SlotRules`, and changes it when assigned."""

    def read(module: RuledModule) -> Any:
        return getattr(module._rules, name)

    def assign(module: RuledModule, value: Any) -> None:
        module._rules = replace(module._rules, **{name: value})

    return property(read, assign, doc=f"`SlotRules.{name}`.")


class RuledModule(nn.Module):
    """Base of the slot attention modules, whose options are their rules.

    Attributes:
        fixed: names of attributes that the constructor alone can give.
        backend: of `emorl.ops.slot_attention`; not in the originals.
    """

    fixed: ClassVar[frozenset[str]] = frozenset()
    _rules: SlotRules

    backend = rule("backend")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.fixed and name in vars(self):
            kind = type(self).__name__
            raise AttributeError(f"{kind}: {name} is the constructor's alone: make another {kind}")
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)  # torch would register a parameter of that name
        else:
            super().__setattr__(name, value)
