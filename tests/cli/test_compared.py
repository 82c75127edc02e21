"""Several models side by side: their names, and over which of them there is a mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emorl.cli import main
from emorl.cli.compared import Compared, compare, configuration_of
from emorl.runs.trained import TRAINED, located
from emorl.training.config_file import find_config, load_config, save_config

NAMES = [
    "tetrominoes-laptop-seed0",
    "slot_attention/tetrominoes-laptop",
    "tetrominoes-laptop-seed1",
]


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of a table by what stands before their numbers, which two spaces part at least."""
    parts = [[part for part in line.split("  ") if part.strip()] for line in text.splitlines()]
    return {name.strip(): numbers for name, *numbers in filter(None, parts)}


def compared(name: str, trained: str | None, fg_ari: float, seed: int = 0) -> Compared:
    """A result of `evaluate`, as far as it is compared."""
    alike = dict.fromkeys(("data", "source", "split", "images", "samples", "seed"), "x")
    metrics = {"fg_ari": {"mean": fg_ari}}
    result = {"checkpoint": f"{name}/step", "protocol": "sample", **alike, "metrics": metrics}
    return Compared(name, {"model": trained, "trainer.seed": seed} if trained else None, result)


def test_a_mean_is_over_runs_of_one_configuration():
    models = [compared("a", "A", 0.9), compared("b", "B", 0.6), compared("c", "A", 1.0, 1)]
    whole, text = compare(models, {}, least_fg_ari=0.8)
    rows = rows_of(text)
    assert [*rows][2:-1] == ["a", "c", "mean over 2 seeds", "std over 2 seeds", "b"]
    assert float(rows["mean over 2 seeds"][0]) == 0.95
    assert "FG-ARI below 0.8, which counts as failed: b (FG-ARI 0.600)" in text
    assert "metrics" not in whole
    group, alone = whole["configurations"]
    assert group["checkpoints"] == ["a/step", "c/step"]
    assert group["metrics"]["fg_ari"]["mean"] == pytest.approx(0.95)
    assert alone["checkpoints"] == ["b/step"]
    assert [result["checkpoint"] for result in whole["results"]] == ["a/step", "b/step", "c/step"]


@pytest.mark.parametrize("second", ["B", None])
def test_there_is_no_mean_over_others(second):
    whole, text = compare([compared("a", None, 1), compared("b", second, 1)], {}, least_fg_ari=0.8)
    assert "no mean over runs" in text
    assert "mean over 2" not in text
    assert len(whole["configurations"]) == 2


def test_one_configuration_has_the_means_of_all():
    whole, _ = compare([compared("a", "A", 1), compared("b", "A", 0, 1)], {}, least_fg_ari=0.8)
    assert whole["metrics"]["fg_ari"] == {"mean": 0.5, "std": 0.5, "runs": 2}


def test_a_copy_of_a_run_is_no_other_seed():
    models = [compared(*run) for run in (("a", "A", 1, 0), ("copy", "A", 1, 0), ("b", "A", 0, 1))]
    whole, text = compare(models, {}, least_fg_ari=0)
    assert whole["metrics"]["fg_ari"] == {"mean": 0.5, "std": 0.5, "runs": 2}
    assert "copy" in rows_of(text)
    assert "mean over 2 seeds" in text
    _, text = compare(models[:2], {}, least_fg_ari=0)
    assert "no mean over runs" in text


def test_what_could_not_be_evaluated_is_named_once():
    failures = {"runs/no": "runs/no: no such folder"}
    _, text = compare([compared("a", "A", 1)], failures, least_fg_ari=0.8)
    assert text.endswith("could not be evaluated: runs/no: no such folder")
    assert "FG-ARI below" not in text


def test_only_the_seed_may_differ():
    own, other, seed = (configuration_of(Path(name), located(name)) for name in NAMES)
    own, other, seed = ({**found, "trainer.seed": 0} for found in (own, other, seed))
    assert own == seed != other
    assert configuration_of(Path("elsewhere"), Path("elsewhere")) is None


def test_checkpoints_that_are_named_are_different_and_newest_ones_are_alike(tmp_path):
    """Runs of some minutes end at steps of their own, which two seeds have not in common."""
    for seed, steps in ((0, 13_900), (1, 14_000)):
        options = [f"--trainer.{key}" for key in (f"seed={seed}", f"steps={steps}")]
        run = tmp_path / f"run{seed}"
        config = load_config(find_config("tetrominoes-laptop"), None, options)
        save_config(config, run / "config.yaml")
        (run / f"checkpoints/step-000{steps}").mkdir(parents=True)
    runs = [tmp_path / "run0", tmp_path / "run1"]
    newest = [next(run.glob("checkpoints/*")) for run in runs]
    first, second = (configuration_of(*pair) for pair in zip(runs, newest, strict=True))
    assert {**first, "trainer.seed": 1} == second
    first, second = (configuration_of(step, step) for step in newest)
    assert first != second


def test_trained_models_are_called_by_their_names(tmp_path, capsys):
    place = tmp_path / "all.json"
    targets = [str(TRAINED / NAMES[1]), NAMES[0], NAMES[2]]
    options = ["--images", "2", "--disentanglement", "no", "--json", str(place)]
    assert main(["evaluate", *targets, *options]) == 0
    printed = capsys.readouterr().out
    assert str(TRAINED) not in printed
    assert "\nefficient_morl/tetrominoes-laptop-seed1\ntetrominoes (test)" in printed
    assert [*rows_of(printed.partition("\nrun ")[2])][1:4] == [
        "slot_attention/tetrominoes-laptop",
        "efficient_morl/tetrominoes-laptop-seed0",
        "efficient_morl/tetrominoes-laptop-seed1",
    ]
    stored = json.loads(place.read_text())["results"]
    assert stored[0]["checkpoint"] == str(TRAINED / NAMES[1])
