"""Disentanglement, completeness and informativeness (DCI) of the codes of objects.

One tree ensemble per factor says how important each dimension of a code is for it. A dimension is
disentangled if it is important for one factor alone, a factor is complete if one dimension alone is
important for it, and codes are informative if factors can be predicted from them (Eastwood and
Williams, 2018). Needs scikit-learn.

Legend: N objects, D dimensions of a code, F factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from emorl.fields import fit
from emorl.metrics.factors import Factor, Floats, halves, require_codes, state_of

_TINY = 1e-11  # that the released code adds to importances


class DCI(NamedTuple):
    """The scores of codes.

    Attributes:
        disentanglement: D, from 0 to 1.
        completeness: C, from 0 to 1.
        informativeness: of each factor on the test half, by name: R^2 of a continuous one, at most
            1 and below 0 for worse than the mean; the accuracy of a discrete one.
        importance: of each dimension for each factor, [D, F]; columns sum to 1.
    """

    disentanglement: float
    completeness: float
    informativeness: dict[str, float]
    importance: Floats


def dci(codes: Floats, factors: Sequence[Factor], *, trees: int = 100, seed: int = 0) -> DCI:
    """DCI with gradient-boosted trees: a regressor or a classifier per factor.

    Args:
        codes: [N, D].
        factors: of the same objects.
        trees: of each ensemble.
        seed: of the trees, which break ties by it.

    Raises:
        ModuleNotFoundError: without scikit-learn.
        ValueError: if there are no factors, or too few objects to train and to test on.
    """
    parts = halves(codes, factors)
    importance, scores = [], {}
    for factor, train, test in zip(factors, *parts.targets, strict=True):
        model = _ensemble(factor.discrete, trees, seed)
        model.fit(parts.train, train)
        importance.append(np.abs(model.feature_importances_))
        scores[factor.name] = float(model.score(parts.test, test))
    table = np.stack(importance, axis=1)
    return DCI(disentanglement(table), completeness(table), scores, table)


def released_dci(
    codes: Floats, factors: Sequence[Factor], *, trees: int = 100, seed: int | None = 0
) -> DCI:
    """DCI as the released code computes it, to compare with the published numbers.

    Its loop overwrites the name of the kind of model with the model. So the first factor's ensemble
    is fitted to every factor: where that one is continuous, classes are regressed as numbers. Its
    informativeness is the share of predictions that equal the true number exactly, of a regression
    as well: continuous factors score about 0, and with half of all factors continuous the mean
    cannot exceed about 0.5.

    Args and errors as `dci`'s; `informativeness` holds those shares. The released code's seed is
    None, numpy's global generator.
    """
    parts = halves(codes, factors)
    model = _ensemble(factors[0].discrete, trees, seed)
    importance, scores = [], {}
    for factor, train, test in zip(factors, *parts.targets, strict=True):
        model.fit(parts.train, train)
        importance.append(np.abs(model.feature_importances_))
        scores[factor.name] = float(np.mean(model.predict(parts.test) == test))
    table = np.stack(importance, axis=1)
    return DCI(disentanglement(table, _TINY), completeness(table, _TINY), scores, table)


def disentanglement(importance: ArrayLike, added: float = 0.0) -> float:
    """D: how far each dimension is important for one factor alone.

    With P_ij the share of factor j in the importance of dimension i, D_i = 1 - H(P_i), the entropy
    to the base F; D is their mean, weighted by the dimensions' importance.

    Args:
        importance: [D, F], 0 or more.
        added: to each importance before its entropy; 0 or more.

    Raises:
        ValueError: if an importance or what is added is negative or not finite.
    """
    if fit("added", added, float) < 0:
        raise ValueError(f"added: expected a finite number >= 0, got {added}")
    table: Floats = np.asarray(importance, dtype=np.float64)
    if table.ndim != 2 or not (np.isfinite(table) & (table >= 0)).all():
        raise ValueError("importance: expected finite numbers >= 0, [D, F]")
    weights = table.sum(axis=1)
    if not weights.sum():
        return 0.0
    return float((1 - _entropy(table + added)) @ weights / weights.sum())


def completeness(importance: ArrayLike, added: float = 0.0) -> float:
    """C: how far one dimension alone is important for each factor; as `disentanglement`."""
    return disentanglement(np.transpose(importance), added)


def dimension_correlation(codes: Floats) -> float:
    """Mean size of the correlation between two dimensions, 0 to 1; NaN for fewer than two.

    Args:
        codes: [N, D], each dimension with a spread.

    Raises:
        ValueError: if codes are no finite numbers [N, D], or a dimension has one value.
    """
    codes = _spread_codes(codes)
    if codes.shape[1] < 2:
        return float("nan")
    correlation = np.abs(np.corrcoef(codes.T))
    return float(correlation[~np.eye(len(correlation), dtype=bool)].mean())


def dimension_redundancy(codes: Floats) -> float:
    """Mean over dimensions of the R^2 with which all others predict it linearly, 0 to 1.

    By least squares with an offset, so that it is 1 for dimensions that depend on each other, or
    with no more objects than dimensions. NaN for fewer than two dimensions.

    Args:
        codes: [N, D], each dimension with a spread.

    Raises:
        ValueError: if codes are no finite numbers [N, D], or a dimension has one value.
    """
    codes = _spread_codes(codes)
    if codes.shape[1] < 2:
        return float("nan")
    centred = codes - codes.mean(axis=0, dtype=np.float64)
    # Lengths and angles of columns are those of the triangular factor's, which has D rows at most.
    columns: Floats = np.linalg.qr(centred / np.linalg.norm(centred, axis=0)).R
    left = []
    for dimension in range(columns.shape[1]):
        others = np.delete(columns, dimension, axis=1)
        weights = np.linalg.lstsq(others, columns[:, dimension], rcond=None)[0]
        left.append(np.sum((columns[:, dimension] - others @ weights) ** 2))
    return float(1 - np.clip(np.mean(left), 0, 1))


def _spread_codes(codes: Floats) -> Floats:
    """The codes as an array, refused where a dimension has no spread."""
    require_codes(codes)
    codes = np.asarray(codes)
    constant = np.flatnonzero((codes == codes[:1]).all(axis=0))
    if len(constant):
        raise ValueError(f"codes: expected a spread, got one value in dimension {constant[0]}")
    return codes


def _entropy(importance: Floats) -> Floats:
    """The entropy of each row's shares, to the base of their number; that of no shares is 1."""
    total = importance.sum(axis=1, keepdims=True)
    shares = np.divide(importance, total, out=np.zeros_like(importance), where=total > 0)
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Floats = -(shares * logarithms).sum(axis=1) / max(np.log(importance.shape[1]), 1e-300)
    return np.where(total[:, 0] > 0, entropy, 1.0)


def _ensemble(discrete: bool, trees: int, seed: int | None) -> Any:
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    if fit("trees", trees, int) < 1:
        raise ValueError(f"trees: expected at least 1, got {trees}")
    kind = GradientBoostingClassifier if discrete else GradientBoostingRegressor
    return kind(n_estimators=trees, random_state=state_of(seed))
