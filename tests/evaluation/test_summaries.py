"""Summaries of images and of runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from emorl.evaluation.summaries import across_runs, bootstrap, single, summarise


def test_a_summary_leaves_out_what_is_not_defined():
    summary = summarise(torch.tensor([1.0, math.nan, 3.0, 2.0]).double())
    assert summary["mean"] == 2
    assert summary["std"] == pytest.approx((2 / 3) ** 0.5)
    assert (summary["count"], summary["excluded"]) == (3, 1)
    assert 1 <= summary["low"] <= 2 <= summary["high"] <= 3


def test_a_summary_of_nothing_is_not_defined():
    summary = summarise(torch.full((2,), math.nan).double())
    assert summary["count"] == 0
    assert all(math.isnan(summary[name]) for name in ("mean", "std", "low", "high"))
    alone = single(0.5, 10, 2)
    assert math.isnan(alone["std"])
    assert alone["excluded"] == 2


def test_the_interval_is_that_of_the_bootstrap():
    """Against scipy's; of 1000 means the 2.5 % point lies within about 0.07 standard errors."""
    values = torch.distributions.Exponential(1.0).sample((60,)).double()
    low, high = bootstrap(values)
    theirs = stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=20000, method="percentile", rng=1
    )
    error = values.std().item() / 60**0.5
    # sqrt(0.025 * 0.975 / 1000) / density(1.96) = 0.085 standard errors; four of these
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.34 * error)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.34 * error)
    assert bootstrap(values) == (low, high)


def result(run: str, fg_ari: float, **other: object) -> dict:
    metrics = {"fg_ari": {"mean": fg_ari}, "mse": {"mean": 2 * fg_ari}}
    measured = {
        "protocol": "paper",
        "data": "d",
        "source": "/d.h5, 35x35",
        "split": "test",
        "images": 320,
    }
    return {"checkpoint": run, **measured, "samples": 1, "seed": 0, "metrics": metrics, **other}


def test_runs_are_summarised_and_failures_counted():
    results = [result("a", 0.9), result("b", 1.0), result("c", 0.5)]
    summary = across_runs(results, {"d": "nan"}, least_fg_ari=0.8)
    assert summary["runs"] == 4
    assert summary["failures"] == {"d": "nan", "c": "FG-ARI 0.500"}
    assert summary["metrics"]["fg_ari"]["mean"] == pytest.approx(0.8)
    assert summary["metrics"]["fg_ari"]["std"] == pytest.approx(np.std([0.9, 1.0, 0.5]))
    assert summary["metrics"]["mse"]["runs"] == 3


OTHERS = {"protocol": "mean", "data": "e", "source": "/d.h5, 64x64", "split": "val"}
OTHERS |= {"images": 3, "samples": 2, "seed": 1}


@pytest.mark.parametrize("key", OTHERS)
def test_results_that_differ_are_not_put_together(key):
    one, other = result("a", 1.0), result("b", 1.0, **{key: OTHERS[key]})
    with pytest.raises(ValueError, match=rf"; got {key} {one[key]} and {OTHERS[key]}$"):
        across_runs([one, other], {}, least_fg_ari=0.8)


def test_one_line_names_all_that_differs():
    results = [result("a", 1.0), result("b", 1.0, images=3, seed=1), result("c", 1.0, seed=2)]
    with pytest.raises(ValueError, match=r"; got images 320 and 3, seed 0 and 1 and 2$"):
        across_runs(results, {}, least_fg_ari=0.8)
    with pytest.raises(ValueError, match=r"; got no results$"):
        across_runs([], {}, least_fg_ari=0.8)
