"""What modules ask of the arguments that they are made with."""

from __future__ import annotations

from typing import Any

from emorl.fields import fit, shown

Size = tuple[int, int]


def require(owner: str, kind: Any, least: float | None = None, /, **arguments: Any) -> None:
    """Hold arguments to what they mean.

    Args:
        owner: whose they are, for messages.
        kind: their type hint.
        least: that they, or the numbers in them, may be; None for no bound.
        arguments: by name; None passes where the hint allows it.

    Raises:
        ValueError: naming the first that does not fit, what is expected and what it is.
    """
    for name, value in arguments.items():
        fitted = fit(f"{owner}: {name}", value, kind)
        numbers = fitted if isinstance(fitted, tuple) else (fitted,)
        if least is not None and any(x is not None and x < least for x in numbers):
            raise ValueError(f"{owner}: {name}: expected at least {least}, got {shown(value)}")
