"""Disentanglement, completeness and informativeness (DCI) of the codes of objects, and probes.

One tree ensemble per factor says how important each dimension of a code is for it. A dimension is
disentangled if it is important for one factor alone, a factor is complete if one dimension alone is
important for it, and codes are informative if factors can be predicted from them (Eastwood and
Williams, 2018). Needs scikit-learn.

Legend: N objects, D dimensions of a code, F factors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Probe = Literal["linear", "mlp"]

PLACES = ("x", "y", "z", "rotation", "orientation", "scale")
"""Factors that are continuous also where their values are whole numbers."""
MOST_CLASSES = 20
SPLIT_SEED = 5  # of the released code, for the same halves
_TINY = 1e-11  # that the released code adds to importances


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
    halves = _halves(codes, factors)
    importance, scores = [], {}
    for factor, train, test in zip(factors, *halves.targets, strict=True):
        model = _ensemble(factor.discrete, trees, seed)
        model.fit(halves.train, train)
        importance.append(np.abs(model.feature_importances_))
        scores[factor.name] = float(model.score(halves.test, test))
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
    halves = _halves(codes, factors)
    model = _ensemble(factors[0].discrete, trees, seed)
    importance, scores = [], {}
    for factor, train, test in zip(factors, *halves.targets, strict=True):
        model.fit(halves.train, train)
        importance.append(np.abs(model.feature_importances_))
        scores[factor.name] = float(np.mean(model.predict(halves.test) == test))
    table = np.stack(importance, axis=1)
    return DCI(disentanglement(table, _TINY), completeness(table, _TINY), scores, table)


def disentanglement(importance: Floats, added: float = 0.0) -> float:
    """D: how far each dimension is important for one factor alone.

    With P_ij the share of factor j in the importance of dimension i, D_i = 1 - H(P_i), the entropy
    to the base F; D is their mean, weighted by the dimensions' importance.

    Args:
        importance: [D, F], 0 or more.
        added: to each importance before its entropy.
    """
    weights = importance.sum(axis=1)
    if not weights.sum():
        return 0.0
    return float((1 - _entropy(importance + added)) @ weights / weights.sum())


def completeness(importance: Floats, added: float = 0.0) -> float:
    """C: how far one dimension alone is important for each factor; as `disentanglement`."""
    return disentanglement(importance.T, added)


def probe(
    codes: Floats, factors: Sequence[Factor], kind: Probe, *, seed: int = 0
) -> dict[str, float]:
    """How well each factor can be read from the codes, on the test half.

    Args:
        codes: [N, D].
        factors: of the same objects.
        kind: "linear": ridge regression, and logistic regression of classes; "mlp": one hidden
            layer of 128 with ReLU.
        seed: of the MLP's weights.

    Returns:
        Factor -> R^2 of a continuous one, accuracy of a discrete one.

    Raises:
        ModuleNotFoundError: without scikit-learn.
        ValueError: if there are no factors, or too few objects.
    """
    from sklearn.preprocessing import StandardScaler

    halves = _halves(codes, factors)
    scaler = StandardScaler().fit(halves.train)
    train_codes, test_codes = scaler.transform(halves.train), scaler.transform(halves.test)
    scores = {}
    for factor, train, test in zip(factors, *halves.targets, strict=True):
        if not factor.discrete:  # R^2 stays as it is where both halves are moved and scaled alike
            mean, scale = train.mean(), train.std() or 1.0
            train, test = (train - mean) / scale, (test - mean) / scale
        with _unfinished_is_fine():
            model = _probe(kind, factor.discrete, seed).fit(train_codes, train)
        scores[factor.name] = float(model.score(test_codes, test))
    return scores


def mean_scores(scores: Mapping[str, float], factors: Sequence[Factor]) -> dict[str, float]:
    """The means of R^2 over continuous and of accuracy over discrete factors, if there are any."""
    kinds = {"r2": False, "accuracy": True}
    chosen = {
        kind: [scores[f.name] for f in factors if f.discrete == discrete]
        for kind, discrete in kinds.items()
    }
    return {kind: float(np.mean(values)) for kind, values in chosen.items() if values}


def learn_matching(
    slots: Floats, objects: Sequence[Floats], *, ridge: float = 1e-2, most: int = 50
) -> list[NDArray[np.int64]]:
    """The slot of each object, learned from what slots say of the objects' factors.

    In turns a linear map is fitted from slots to the factors of their objects, and each image's
    objects get the slots that predict them best (Hungarian), until nothing changes. The first map
    is fitted to all pairs of an image's slots and objects. So no mask is needed, and neither the
    slots' nor the objects' order has a say, as in Dang-Nhu, Evaluating disentanglement of
    structured representations (2022), whose predictor is another.

    Args:
        slots: [B, K, D].
        objects: of each image [E, T], E up to K: the targets of `targets_of`.
        ridge: weight of the penalty, relative to the number of pairs.
        most: rounds.

    Returns:
        Of each image the slots of its objects, [E].

    Raises:
        ModuleNotFoundError: without scipy.
        ValueError: if an image has more objects than slots, or none has any.
    """
    if not any(map(len, objects)) or max(map(len, objects)) > slots.shape[1]:
        raise ValueError(f"expected images of 1 to {slots.shape[1]} objects, one per slot")
    flat = slots.reshape(-1, slots.shape[2])
    spread = flat.std(axis=0)
    slots = (slots - flat.mean(axis=0)) / np.where(spread > 0, spread, 1)
    every = [
        (np.repeat(own, len(rows), axis=0), np.tile(rows, (len(own), 1)))
        for own, rows in zip(slots, objects, strict=True)
    ]
    matched: list[NDArray[np.int64]] = []
    pairs = every
    for _ in range(most):
        predict = _linear_map(pairs, ridge)
        before, matched = (
            matched,
            [_best_slots(rows, predict(own)) for own, rows in zip(slots, objects, strict=True)],
        )
        if before and all(map(np.array_equal, before, matched)):
            break
        pairs = [
            (own[chosen], rows) for own, chosen, rows in zip(slots, matched, objects, strict=True)
        ]
    return matched


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


def dimension_correlation(codes: Floats) -> float:
    """Mean size of the correlation between two dimensions, 0 to 1; NaN for fewer than two.

    Args:
        codes: [N, D], each dimension with a spread.
    """
    if codes.shape[1] < 2:
        return float("nan")
    correlation = np.abs(np.corrcoef(codes.T))
    return float(correlation[~np.eye(len(correlation), dtype=bool)].mean())


def dimension_redundancy(codes: Floats) -> float:
    """Mean over dimensions of the R^2 with which all others predict it linearly, 0 to 1.

    1 - 1 / v, with v the diagonal of the inverse correlations (the variance inflation). NaN for
    fewer than two dimensions.

    Args:
        codes: [N, D], each dimension with a spread.
    """
    if codes.shape[1] < 2:
        return float("nan")
    inflation = np.diag(np.linalg.pinv(np.corrcoef(codes.T), hermitian=True))
    return float(np.mean(1 - 1 / np.maximum(inflation, 1)))


class _Halves(NamedTuple):
    """Codes to train and test on, and the two halves of each factor's values."""

    train: Floats
    test: Floats
    targets: tuple[list[Floats], list[Floats]]


def _halves(codes: Floats, factors: Sequence[Factor]) -> _Halves:
    """Two random halves of the objects, those of the released code."""
    from sklearn.model_selection import train_test_split

    if not factors or len(codes) < 4:
        raise ValueError(
            f"expected 4 or more objects with factors, got {len(codes)} with {len(factors)}"
        )
    train, test = train_test_split(np.arange(len(codes)), test_size=0.5, random_state=SPLIT_SEED)
    halves = ([f.values[train] for f in factors], [f.values[test] for f in factors])
    for factor, values in zip(factors, halves[0], strict=True):
        if len(np.unique(values)) < 2:
            raise ValueError(f"{factor.name}: the same for all objects of the training half")
    return _Halves(codes[train], codes[test], halves)


def _entropy(importance: Floats) -> Floats:
    """The entropy of each row's shares, to the base of their number; that of no shares is 1."""
    total = importance.sum(axis=1, keepdims=True)
    shares = np.divide(importance, total, out=np.zeros_like(importance), where=total > 0)
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Floats = -(shares * logarithms).sum(axis=1) / max(np.log(importance.shape[1]), 1e-300)
    return np.where(total[:, 0] > 0, entropy, 1.0)


def _ensemble(discrete: bool, trees: int, seed: int | None) -> Any:
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    kind = GradientBoostingClassifier if discrete else GradientBoostingRegressor
    return kind(n_estimators=trees, random_state=_state(seed))


def _probe(kind: Probe, discrete: bool, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    if kind == "linear":
        return LogisticRegression(max_iter=1000) if discrete else Ridge()
    network = MLPClassifier if discrete else MLPRegressor
    return network(hidden_layer_sizes=(128,), random_state=_state(seed))


def _state(seed: int | None) -> int | None:
    """A seed as scikit-learn takes it."""
    return None if seed is None else seed % 2**32


@contextmanager
def _unfinished_is_fine() -> Iterator[None]:
    """No word about a probe that would still improve: it says what can be read easily."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _linear_map(pairs: Sequence[tuple[Floats, Floats]], ridge: float) -> Any:
    """The ridge regression from codes to targets, as a function."""
    codes, targets = (np.concatenate(part) for part in zip(*pairs, strict=True))
    means = codes.mean(axis=0), targets.mean(axis=0)
    centred = codes - means[0]
    gram = centred.T @ centred + ridge * len(codes) * np.eye(codes.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (targets - means[1]))
    return lambda x: (x - means[0]) @ weights + means[1]


def _best_slots(targets: Floats, predictions: Floats) -> NDArray[np.int64]:
    from scipy.optimize import linear_sum_assignment

    distance = ((targets[:, None] - predictions[None]) ** 2).sum(axis=2)  # [E, K]
    return np.asarray(linear_sum_assignment(distance)[1], dtype=np.int64)


def _scaled(values: Floats) -> Floats:
    scaled: Floats = (values - values.mean()) / (values.std() or 1.0)
    return scaled
