"""Probes: how well networks and linear models read the factors of objects from their codes.

Needs scikit-learn. Legend: N objects, D dimensions of a code.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from emorl.extras import require_package
from emorl.metrics.factors import Factor, Floats, halves, state_of

Probe = Literal["linear", "mlp"]


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
        ValueError: for another kind, if there are no factors, or too few objects.
    """
    if kind not in get_args(Probe):
        raise ValueError(f"kind: expected linear or mlp, got {kind!r}")
    parts = halves(codes, factors)
    require_package("sklearn")
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(parts.train)
    train_codes, test_codes = scaler.transform(parts.train), scaler.transform(parts.test)
    scores = {}
    for factor, train, test in zip(factors, *parts.targets, strict=True):
        if not factor.discrete:  # R^2 stays as it is where both halves are moved and scaled alike
            mean, scale = train.mean(), train.std() or 1.0
            train, test = (train - mean) / scale, (test - mean) / scale
        with _unfinished_is_fine():
            model = _probe(kind, factor.discrete, seed).fit(train_codes, train)
        scores[factor.name] = float(model.score(test_codes, test))
    return scores


def _probe(kind: Probe, discrete: bool, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    if kind == "linear":
        return LogisticRegression(max_iter=1000) if discrete else Ridge()
    network = MLPClassifier if discrete else MLPRegressor
    return network(hidden_layer_sizes=(128,), random_state=state_of(seed))


@contextmanager
def _unfinished_is_fine() -> Iterator[None]:
    """No word about a probe that would still improve: it says what can be read easily."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
