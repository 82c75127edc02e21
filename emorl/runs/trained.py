"""Trained models that come with emorl, by name: "efficient_morl/tetrominoes-laptop".

Each is a model folder that also has the configuration it was trained with, so that its data are
known as a run's are.
"""

from __future__ import annotations

import os
from pathlib import Path

from emorl.paths import local, real

TRAINED = Path(__file__).resolve().parents[1] / "trained"
FIRST = "efficient_morl"
"""Whose a name without a model is, as in `emorl train`."""


def trained_names() -> list[str]:
    """The names, MODEL/CONFIGURATION."""
    return sorted(f"{place.parent.name}/{place.name}" for place in TRAINED.glob("*/*"))


def located(path: str | Path, model: str = FIRST) -> Path:
    """A path as it is, or the folder of the trained model that is called so.

    Args:
        path: of anything, or a name; what is there in the file system is no name.
        model: whose a name without a model is.

    Raises:
        ValueError: if it can be no path.
    """
    given = local(path)
    if os.path.lexists(given):
        return given
    known = trained_names()
    names = (given.as_posix(), f"{model}/{given}")
    return next((TRAINED / name for name in names if name in known), given)


def short_name(path: str | Path) -> str:
    """A path as it is; of a trained model its name, MODEL/CONFIGURATION."""
    place = real(located(path))
    return place.relative_to(TRAINED).as_posix() if is_among_trained(place) else str(path)


def is_trained(path: str | Path) -> bool:
    """Whether a path, or a name, is that of a trained model, which nothing is written beside."""
    return is_among_trained(real(located(path)))


def is_among_trained(place: Path) -> bool:
    """Whether an absolute path without links is that of a trained model, or of what is in it."""
    return TRAINED in place.parents


def require_apart(path: Path, option: str) -> None:
    """Refuse to write among the trained models.

    Raises:
        ValueError: naming the option.
    """
    place = real(path)
    if place == TRAINED or is_among_trained(place):
        raise ValueError(f"{option}: expected a place apart from the trained models, got {path}")


def hint(path: Path) -> str:
    """What to add to an error about a path that may be a mistyped name: names, without seeds."""
    known = [name for name in trained_names() if "-seed" not in name]
    if os.path.lexists(path) or path.is_absolute() or len(path.parts) > 2 or not known:
        return ""
    return f"; trained models that come along: {', '.join(known)}"
