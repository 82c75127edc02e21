"""Properties of objects, and the halves of objects that scores are fitted to and tested on.

Legend: N objects, T targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emorl.extras import require_package
from emorl.fields import fit

Floats = NDArray[np.float64]

PLACES = ("x", "y", "z", "rotation", "orientation", "scale")
"""Factors that are continuous also where their values are whole numbers."""
MOST_CLASSES = 20
SPLIT_SEED = 5  # of the released code, for the same halves


@dataclass(frozen=True)
class Factor:
    """A property of each object.

    Attributes:
        name: of the property.
        values: [N]; of a discrete one the numbers of the classes.
        discrete: whether values are classes, which are predicted right or wrong.
    """

    name: str
    values: Floats
    discrete: bool


def make_factors(table: Mapping[str, NDArray[Any]]) -> list[Factor]:
    """Factors from their values by name, [N] or [N, n] each.

    One is discrete if all its values are whole numbers, it has at most `MOST_CLASSES` of them and
    is none of `PLACES`; several whole numbers, such as a colour's, are then one class together.
    Several other numbers are a continuous factor each. A factor that is the same for all objects is
    left out.
    """
    factors = []
    for name, values in table.items():
        rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        whole = bool((rows == np.round(rows)).all())
        kinds, classes = np.unique(rows, axis=0, return_inverse=True)
        if name not in PLACES and whole and len(kinds) <= MOST_CLASSES:
            factors.append(Factor(name, classes.reshape(-1).astype(np.float64), discrete=True))
        else:
            names = [name] if rows.shape[1] == 1 else [f"{name}_{i}" for i in range(rows.shape[1])]
            columns = zip(names, rows.T, strict=True)
            factors += [Factor(own, column, discrete=False) for own, column in columns]
    return [factor for factor in factors if len(np.unique(factor.values)) > 1]


def targets_of(factors: Sequence[Factor]) -> Floats:
    """Factors as numbers to regress, [N, T]: continuous ones scaled, classes as indicators."""
    columns = []
    for factor in factors:
        if factor.discrete:
            kinds = np.unique(factor.values)
            columns.append((factor.values[:, None] == kinds) / np.sqrt(2.0))
        else:
            columns.append(_scaled(factor.values)[:, None])
    return np.concatenate(columns, axis=1)


def mean_scores(scores: Mapping[str, float], factors: Sequence[Factor]) -> dict[str, float]:
    """The means of R^2 over continuous and of accuracy over discrete factors, if there are any."""
    kinds = {"r2": False, "accuracy": True}
    chosen = {
        kind: [scores[f.name] for f in factors if f.discrete == discrete]
        for kind, discrete in kinds.items()
    }
    return {kind: float(np.mean(values)) for kind, values in chosen.items() if values}


class Halves(NamedTuple):
    """Codes to train and test on, and the two halves of each factor's values."""

    train: Floats
    test: Floats
    targets: tuple[list[Floats], list[Floats]]


def halves(codes: Floats, factors: Sequence[Factor]) -> Halves:
    """Two random halves of the objects, those of the released code.

    Args:
        codes: [N, D].
        factors: of the same objects.

    Raises:
        ModuleNotFoundError: without scikit-learn.
        ValueError: if there are no factors, two of one name or fewer than four objects, or a factor
            is that of another number of objects, not finite, or the same for all objects of the
            first half; if codes are not finite.
    """
    require_codes(codes)
    if not factors or len(codes) < 4:
        raise ValueError(
            f"expected 4 or more objects with factors, got {len(codes)} with {len(factors)}"
        )
    names = [factor.name for factor in factors]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"expected factors of different names, got {twice[0]} {len(twice)} times")
    for factor in factors:
        if len(factor.values) != len(codes):
            raise ValueError(
                f"{factor.name}: expected a value for each of {len(codes)} codes, got "
                f"{len(factor.values)}"
            )
        if not np.isfinite(factor.values).all():
            raise ValueError(f"{factor.name}: expected finite values, got NaN or infinity")
    for factor in factors:
        if not _differs(factor.values):
            raise ValueError(f"{factor.name}: the same for all objects of the training half")
    train, test = _split(len(codes))
    targets = ([f.values[train] for f in factors], [f.values[test] for f in factors])
    return Halves(codes[train], codes[test], targets)


def varied(factors: Sequence[Factor]) -> list[Factor]:
    """Those of the factors that differ among the objects of the training half.

    Raises:
        ModuleNotFoundError: without scikit-learn.
    """
    return [factor for factor in factors if _differs(factor.values)]


def _differs(values: Floats) -> bool:
    return len(values) > 1 and len(np.unique(values[_split(len(values))[0]])) > 1


def _split(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The objects of both halves."""
    require_package("sklearn")
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(np.arange(count), test_size=0.5, random_state=SPLIT_SEED)
    return train, test


def require_codes(codes: Floats) -> None:
    """Raise a ValueError unless they are finite numbers [N, D]."""
    numbers = np.asarray(codes)
    if numbers.ndim != 2 or numbers.dtype.kind not in "buif":
        raise ValueError(f"codes: expected numbers [N, D], got {numbers.dtype} {[*numbers.shape]}")
    if not np.isfinite(numbers).all():
        raise ValueError("codes: expected finite numbers, got NaN or infinity")


def state_of(seed: int | None) -> int | None:
    """A seed as scikit-learn takes it."""
    number: int | None = fit("seed", seed, int | None)
    return None if number is None else number % 2**32


def _scaled(values: Floats) -> Floats:
    scaled: Floats = (values - values.mean()) / (values.std() or 1.0)
    return scaled
