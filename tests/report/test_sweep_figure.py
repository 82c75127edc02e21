"""The figure of a sweep, made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from emorl.report import sweep_figure
from emorl.report.pictures import png

MEANS = {"fg_ari": [0.7, 0.9, 0.8], "mse": [0.03, 0.01, 0.02]}


def result(**other: object) -> dict:
    points = [
        {
            "value": value,
            "metrics": {
                name: {"mean": m, "std": 0.2, "low": m - 0.01, "high": m + 0.03}
                for name, m in ((name, means[index]) for name, means in MEANS.items())
            },
        }
        for index, value in enumerate((3, 4, 6))
    ]
    head = {"data": r"a$\b$", "split": "test", "images": 9, "protocol": "mean"}
    return {**head, "sweep": "num_slots", "own": 4, "points": points, **other}


def test_means_intervals_and_spread_are_where_they_belong():
    figure = sweep_figure(result())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["FG-ARI", "MSE"]
    for axes, means, most in zip(figure.axes, MEANS.values(), (1.0, np.inf), strict=True):
        assert axes.get_xlabel() == "slots"
        (container,) = axes.containers
        line, _, (bars,) = container
        assert line.get_xdata().tolist() == [3, 4, 6]
        assert line.get_ydata().tolist() == means
        ends = [segment[:, 1] for segment in bars.get_segments()]
        assert np.array(ends) == pytest.approx(np.array([(m - 0.01, m + 0.03) for m in means]))
        (band,) = [c for c in axes.collections if c is not bars]
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx(min(max(means) + 0.2, most))
        assert heights.min() == pytest.approx(max(min(means) - 0.2, 0))
        assert [*axes.lines[-1].get_xdata()] == [4, 4]
    assert r"a$\b$ (test): 9 images, protocol mean" in figure.get_suptitle()  # is no formula
    assert png(figure).startswith(b"\x89PNG")


def test_another_number_of_the_models_own_is_not_drawn():
    figure = sweep_figure(result(own=7))
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["standard deviation of images", "mean, 95 % interval (bootstrap)"]
