"""DCI, probes and the learned matching on codes whose answers are known."""

from __future__ import annotations

import math
import sys
from functools import partial

import numpy as np
import pytest
from scipy import linalg, stats

from emorl.metrics.disentanglement import (
    completeness,
    dci,
    dimension_correlation,
    dimension_redundancy,
    disentanglement,
    released_dci,
)
from emorl.metrics.factors import Factor, make_factors, mean_scores, targets_of
from emorl.metrics.learned_matching import learn_matching
from emorl.metrics.probes import probe

OBJECTS, TREES = 240, 20
RELEASED = {
    "disentanglement": 0.12399714378845392,
    "completeness": 0.11965147639575768,
    "informativeness_test": 0.0,
}


def made_factors(count: int = OBJECTS, seed: int = 0) -> list[Factor]:
    """Two continuous and one discrete factor, independent."""
    draw = np.random.default_rng(seed)
    return make_factors(
        {
            "x": draw.uniform(-3, 3, count),
            "y": draw.uniform(-3, 3, count),
            "shape": draw.integers(0, 3, count),
        }
    )


def perfect_codes(factors: list[Factor]) -> np.ndarray:
    """A dimension for each factor, and two that are constant."""
    columns = [factor.values for factor in factors]
    return np.stack([columns[1], np.ones(len(columns[0])), columns[2], -columns[0]], axis=1)


def turned(codes: np.ndarray) -> np.ndarray:
    """Each factor spread evenly over all dimensions."""
    scaled = (codes - codes.mean(0)) / np.maximum(codes.std(0), 1e-9)
    return scaled @ linalg.hadamard(4) / 2


@pytest.fixture(scope="module")
def factors() -> list[Factor]:
    return made_factors()


def test_perfect_codes_have_one(factors):
    scores = dci(perfect_codes(factors), factors, trees=TREES)
    assert scores.disentanglement == pytest.approx(1, abs=1e-3)
    assert scores.completeness == pytest.approx(1, abs=1e-3)
    assert scores.informativeness["shape"] == 1
    # 20 trees at a rate of 0.1 leave at least 0.9 ** 20 = 0.12 of the spread, 0.015 of R^2's share
    assert min(scores.informativeness[name] for name in ("x", "y")) > 0.95
    expected = np.zeros((4, 3))
    expected[[3, 0, 2], [0, 1, 2]] = 1
    np.testing.assert_allclose(scores.importance, expected, atol=1e-3)


def test_turned_codes_have_little(factors):
    scores = dci(turned(perfect_codes(factors)), factors, trees=TREES)
    assert scores.disentanglement < 0.5
    assert scores.completeness < 0.5


def test_order_and_scale_of_dimensions_do_not_matter(factors):
    codes = perfect_codes(factors) + np.random.default_rng(2).normal(0, 0.3, (OBJECTS, 4))
    first = dci(codes, factors, trees=TREES)
    second = dci(100 * codes[:, [2, 0, 3, 1]] - 7, factors, trees=TREES)
    assert second.disentanglement == pytest.approx(first.disentanglement, abs=0.02)
    assert second.completeness == pytest.approx(first.completeness, abs=0.02)


def test_codes_of_nothing_say_nothing(factors):
    codes = np.random.default_rng(3).normal(size=(OBJECTS, 4))
    scores = dci(codes, factors, trees=TREES)
    means = mean_scores(scores.informativeness, factors)
    assert means["r2"] < 0.1
    assert means["accuracy"] < 0.5


def test_scores_of_importances_by_hand():
    """A dimension for both factors, one for the first, and one for nothing."""
    importance = np.array([[0.5, 1.0], [0.5, 0.0], [0.0, 0.0]])
    shared = stats.entropy([1 / 3, 2 / 3], base=2)
    assert disentanglement(importance) == pytest.approx((1.5 * (1 - shared) + 0.5) / 2)
    assert completeness(importance) == pytest.approx((1 - math.log(2, 3) + 1) / 2)
    assert disentanglement(np.zeros((2, 2))) == 0
    assert disentanglement(np.eye(3)) == completeness(np.eye(3)) == 1
    assert disentanglement(np.ones((3, 4))) == pytest.approx(0)


def test_released_scores_are_those_of_the_released_file(factors):
    """Which `lib/dci.py` printed for the same codes, factors and state of numpy's generator."""
    codes = turned(perfect_codes(factors)) + np.random.default_rng(4).normal(0, 0.1, (OBJECTS, 4))
    np.random.seed(0)  # the released code draws from it
    scores = released_dci(codes, factors, seed=None)
    assert scores.disentanglement == pytest.approx(RELEASED["disentanglement"], abs=1e-9)
    assert scores.completeness == pytest.approx(RELEASED["completeness"], abs=1e-9)
    informativeness = np.mean([*scores.informativeness.values()])
    assert informativeness == pytest.approx(RELEASED["informativeness_test"], abs=1e-12)


def test_the_released_flaw_and_its_mending():
    """The first factor's regressor takes classes for numbers, and equality finds nothing."""
    factors = made_factors()
    codes = perfect_codes(factors)
    released, right = released_dci(codes, factors), dci(codes, factors, trees=TREES)
    assert max(released.informativeness.values()) < 0.1
    assert right.informativeness["shape"] == 1
    discrete_first = released_dci(codes, [factors[2]], trees=TREES)
    assert discrete_first.informativeness["shape"] == 1


def test_probes_read_what_is_there(factors):
    codes = turned(perfect_codes(factors))
    linear, mlp = (probe(codes, factors, kind) for kind in ("linear", "mlp"))
    assert min(linear["x"], linear["y"]) > 0.999  # a linear code of x and y
    assert mlp["shape"] > 0.95
    hidden = np.stack([np.sign(codes[:, 0]) * codes[:, 0] ** 2, codes[:, 1]], axis=1)
    curved = [Factor("x", np.abs(codes[:, 0]), discrete=False)]
    assert probe(hidden, curved, "linear")["x"] < 0.3  # an even function is hidden from it
    assert probe(hidden, curved, "mlp")["x"] > 0.8


def test_probes_do_not_depend_on_units(factors):
    codes = perfect_codes(factors)
    other = [Factor(f.name, 1000 * f.values + 5, f.discrete) for f in factors]
    for kind in ("linear", "mlp"):
        first, second = probe(codes, factors, kind), probe(codes, other, kind)
        assert first == pytest.approx(second, abs=1e-6)


def made_scenes(seed: int = 0) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], list]:
    """Images of 1 to 3 objects in 4 slots of any order, each slot a turned code of its object."""
    draw = np.random.default_rng(seed)
    counts = draw.integers(1, 4, 120)
    factors = made_factors(int(counts.sum()), seed)
    targets = targets_of(factors)
    turn = np.linalg.qr(draw.normal(size=(8, 8)))[0][: targets.shape[1]]
    codes = 2 * targets @ turn + draw.normal(0, 0.05, (len(targets), 8))
    slots, rows, truth, start = draw.normal(0, 0.3, (120, 4, 8)), [], [], 0
    for image, count in enumerate(counts):
        place = draw.permutation(4)[:count]
        slots[image, place] = codes[start : start + count]
        rows.append(np.arange(start, start + count))
        truth.append(place)
        start += count
    return slots, [targets[own] for own in rows], truth, factors


def test_the_matching_is_learned_without_masks():
    slots, objects, truth, _ = made_scenes()
    learned = learn_matching(slots, objects)
    agreement = np.mean(np.concatenate(learned) == np.concatenate(truth))
    assert agreement > 0.99


def test_the_learned_matching_does_not_know_the_order_of_slots():
    slots, objects, _, factors = made_scenes()
    draw = np.random.default_rng(9)
    orders = [draw.permutation(4) for _ in slots]
    shuffled = np.stack([own[order] for own, order in zip(slots, orders, strict=True)])
    first_round = [learn_matching(own, objects, most=1) for own in (slots, shuffled)]
    back = [order[chosen] for order, chosen in zip(orders, first_round[1], strict=True)]
    assert all(map(np.array_equal, first_round[0], back))  # the start knows no order either
    plain, other = learn_matching(slots, objects), learn_matching(shuffled, objects)
    back = [order[chosen] for order, chosen in zip(orders, other, strict=True)]
    assert all(map(np.array_equal, plain, back))
    codes = [
        np.concatenate([own[c] for own, c in zip(s, chosen, strict=True)])
        for s, chosen in ((slots, plain), (shuffled, other))
    ]
    assert np.array_equal(*codes)
    first, second = (dci(own, factors, trees=5) for own in codes)
    assert first.disentanglement == second.disentanglement


def test_a_matching_needs_a_slot_for_each_object():
    with pytest.raises(ValueError, match="expected images of 1 to 2 objects"):
        learn_matching(np.zeros((1, 2, 3)), [np.zeros((3, 1))])
    with pytest.raises(ValueError, match="expected images of 1 to 2 objects"):
        learn_matching(np.zeros((1, 2, 3)), [np.zeros((0, 1))])


def test_kinds_of_factors():
    factors = make_factors(
        {
            "x": np.array([0, 1, 2, 1]),
            "shape": np.array([7, 3, 7, 3]),
            "color": np.array([[0, 1, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0]]),
            "tint": np.array([[0.5, 0.2], [0.1, 0.2], [0.3, 0.2], [0.5, 0.1]]),
            "same": np.ones(4),
        }
    )
    kinds = {factor.name: factor.discrete for factor in factors}
    assert kinds == {
        "x": False,
        "shape": True,
        "color": True,
        "tint_0": False,
        "tint_1": False,
    }
    assert [*factors[1].values] == [1, 0, 1, 0]
    assert [*factors[2].values] == [0, 1, 0, 1]
    many = make_factors({"shape": np.arange(21)})
    assert not many[0].discrete


def test_correlation_and_redundancy():
    draw = np.random.default_rng(0).normal(size=(5000, 3))
    assert dimension_correlation(draw) < 0.05
    assert dimension_redundancy(draw) < 0.01
    twice = np.concatenate([draw[:, :1], -2 * draw[:, :1] + 1e-6 * draw[:, 1:2]], axis=1)
    assert dimension_correlation(twice) == pytest.approx(1)
    assert dimension_redundancy(twice) == pytest.approx(1)
    both = np.column_stack([draw[:, 0], draw[:, 0] + draw[:, 1]])  # correlation 1 / sqrt(2)
    assert dimension_correlation(both) == pytest.approx(0.5**0.5, abs=0.02)
    assert dimension_redundancy(both) == pytest.approx(0.5, abs=0.03)
    assert math.isnan(dimension_correlation(draw[:, :1]))
    assert math.isnan(dimension_redundancy(draw[:, :1]))


@pytest.mark.parametrize("measure", [dimension_correlation, dimension_redundancy])
def test_a_dimension_without_a_spread_is_refused(measure):
    codes = np.random.default_rng(0).normal(size=(50, 3))
    codes[:, 1] = 0.1
    with pytest.raises(ValueError, match="codes: expected a spread, got one value in dimension 1"):
        measure(codes)


def test_importances_may_be_lists():
    assert disentanglement([[1, 0], [0, 1]]) == completeness([[1, 0], [0, 1]]) == 1


def test_redundancy_of_dimensions_that_depend_on_each_other_is_one():
    a, b = np.random.default_rng(0).normal(size=(2, 100))
    for codes in (np.c_[a, a], np.c_[a, 2 - 3 * a], np.c_[a, b, a + b], np.c_[a, a].astype("f4")):
        assert dimension_redundancy(codes) == pytest.approx(1)
    assert dimension_redundancy(np.c_[a, b, a]) == pytest.approx((2 + _explained(b, a)) / 3)
    few = np.random.default_rng(1).normal(size=(20, 32))
    assert dimension_redundancy(few) == pytest.approx(1)


def test_redundancy_is_the_r2_of_least_squares():
    codes = np.random.default_rng(2).normal(size=(60, 5)) @ np.random.default_rng(3).normal(
        size=(5, 5)
    )
    expected = [_explained(codes[:, i], np.delete(codes, i, axis=1)) for i in range(5)]
    assert dimension_redundancy(codes) == pytest.approx(np.mean(expected))


def _explained(target, others):
    """R^2 of a regression with an offset."""
    inputs = np.c_[np.ones(len(target)), others]
    left = target - inputs @ np.linalg.lstsq(inputs, target, rcond=None)[0]
    return 1 - left.var() / target.var()


def test_what_cannot_be_scored_is_refused(factors):
    with pytest.raises(ValueError, match="4 or more objects with factors, got 3 with 3"):
        dci(np.zeros((3, 2)), made_factors(3))
    with pytest.raises(ValueError, match="got 240 with 0"):
        dci(np.zeros((OBJECTS, 2)), [])
    same = Factor("same", np.zeros(OBJECTS), discrete=True)
    with pytest.raises(ValueError, match="same: the same for all objects of the training half"):
        dci(np.zeros((OBJECTS, 2)), [same])


def test_without_scikit_learn(factors, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for measure in (dci, partial(probe, kind="linear")):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'emorl\[evaluation\]'"):
            measure(perfect_codes(factors), factors)


def test_wrong_arguments_of_probes_and_dci_are_named(factors):
    codes = perfect_codes(factors)
    with pytest.raises(ValueError, match="kind: expected linear or mlp, got 'svm'"):
        probe(codes, factors, "svm")
    for score in (dci, released_dci, lambda *given: probe(*given, "linear")):
        with pytest.raises(ValueError, match=r"x: expected a value for each of 200 codes, got 240"):
            score(codes[:200], factors)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(bad):
    codes = np.zeros((8, 3))
    factors = make_factors({"x": np.arange(8.0)})
    codes[2, 1] = bad
    for measure in (dimension_correlation, dimension_redundancy):
        with pytest.raises(ValueError, match="codes: expected finite numbers, got NaN or infinity"):
            measure(codes)
    for score in (dci, released_dci, lambda *given: probe(*given, "linear")):
        with pytest.raises(ValueError, match="codes: expected finite numbers, got NaN or infinity"):
            score(codes, factors)
        values = np.where(np.arange(8) == 5, bad, factors[0].values)
        with pytest.raises(ValueError, match="x: expected finite values, got NaN or infinity"):
            score(np.zeros((8, 3)), [Factor("x", values, discrete=False)])
    for wrong in (bad, -1.0):
        with pytest.raises(ValueError, match="importance: expected finite numbers >= 0"):
            disentanglement(np.full((3, 2), wrong))
    with pytest.raises(ValueError, match="trees: expected at least 1, got 0"):
        dci(np.random.default_rng(0).normal(size=(8, 3)), factors, trees=0)
    with pytest.raises(ValueError, match=r"seed: expected a whole number or null, got 0\.5"):
        dci(np.random.default_rng(0).normal(size=(8, 3)), factors, seed=0.5)


@pytest.mark.parametrize("added", [float("nan"), float("inf"), -1, -0.5, "x"])
def test_what_is_added_is_a_number_from_0_on(added):
    with pytest.raises(ValueError, match="added: expected"):
        disentanglement(np.eye(3), added)


@pytest.mark.parametrize("score", [dci, released_dci])
def test_two_factors_of_one_name_are_refused(score):
    codes = np.random.default_rng(0).normal(size=(20, 2))
    factors = [Factor("x", codes[:, column], False) for column in range(2)]
    with pytest.raises(ValueError, match="factors of different names, got x 2 times"):
        score(codes, factors, trees=2)
