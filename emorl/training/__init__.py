"""Objectives and the trainer.

`GECO` needs torch alone; the trainer is in `emorl.training.trainer` (extra "train").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emorl.models.geco import GECO

__all__ = ["GECO"]


def __getattr__(name: str) -> Any:
    """What needs torch, loaded when it is first asked for."""
    if name != "GECO":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from emorl.models.geco import GECO

    return GECO
