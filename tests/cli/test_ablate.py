"""`emorl ablate`, with trainings that only pretend."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from emorl.cli import INTERRUPTED, ablate, main
from emorl.training.ablations import ABLATIONS, CONFIG
from emorl.training.config_file import find_config, load_config


def config_of(name: str) -> dict:
    arguments = ABLATIONS[name].options(700, 3)
    assert arguments[:2] == ["--config", CONFIG]
    config = load_config(find_config(CONFIG), None, arguments[2:])
    groups = {"network": vars(config.network), "trainer": vars(config.trainer)}
    return {f"{group}.{key}": x for group, values in groups.items() for key, x in values.items()}


def test_the_full_model_is_trained_as_published():
    full = config_of("full")
    assert (full["network.gru"], full["network.prior"]) == ("dual", "reversed++")
    assert full["trainer.geco"].target_per_dim == -2.206
    assert full["trainer.curriculum"] == {"refinement_steps": [(0, 1)]}
    assert (full["trainer.steps"], full["trainer.cooldown_steps"]) == (700, 500)
    assert (full["trainer.seed"], full["trainer.max_minutes"]) == (3, None)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("single-gru", {"network.gru": "single"}),
        ("no-geco", {"trainer.geco": None}),
        ("bottom-up", {"network.prior": "bottom_up"}),
        ("reversed", {"network.prior": "reversed"}),
    ],
)
def test_an_ablation_differs_in_one_option(name, changed):
    full, other = config_of("full"), config_of(name)
    assert {key: x for key, x in other.items() if x != full[key]} == changed


@pytest.fixture
def pretended(monkeypatch) -> list[list[str]]:
    """The arguments of each training; one ends in NaN, and no-geco is interrupted."""
    trained: list[list[str]] = []

    def train(arguments: list[str]) -> int:
        trained.append(arguments)
        if "--network.prior=reversed" in arguments and "--trainer.seed=1" in arguments:
            raise ArithmeticError("step 9: nll_1 is nan")
        return INTERRUPTED if "--trainer.geco=null" in arguments else 0

    def measured(folder: Path, images: int) -> dict:
        seed = int(folder.name[-1])
        alike = {"protocol": "sample", "data": "d", "split": "test", "samples": 1, "seed": 0}
        values = {"fg_ari": 0.7 + 0.2 * seed, "mse": 0.01, "kl": 50.0}
        metrics = {name: {"mean": x} for name, x in values.items()}
        checkpoint = f"{folder}/checkpoints/step-00000700"
        return {"checkpoint": checkpoint, "images": images, "metrics": metrics, **alike}

    monkeypatch.setattr(ablate.train, "run", train)
    monkeypatch.setattr(ablate, "_measured", measured)
    return trained


def test_rows_are_trained_and_tabulated(pretended, tmp_path, capsys):
    line = ["ablate", "--out", str(tmp_path), "--seeds", "2", "--steps", "700"]
    assert main([*line, "--rows", "reversed", "full"]) == 0
    folders = [f"{row}-seed{seed}" for row in ("full", "reversed") for seed in (0, 1)]
    for arguments, folder in zip(pretended, folders, strict=True):
        assert arguments[-3:] == ["--out", str(tmp_path / folder), "--resume=auto"]
        assert "--trainer.steps=700" in arguments
    full, other = csv.DictReader((tmp_path / "ablations.csv").read_text().splitlines())
    assert (full["ablation"], full["runs"], full["failed"], full["steps"]) == (
        *("full", "2", "1", "700"),
    )
    assert float(full["fg_ari_mean"]) == pytest.approx(0.8)
    assert float(full["fg_ari_std"]) == pytest.approx(0.1)
    assert (other["options"], other["runs"], other["failed"]) == (
        *("network.prior=reversed", "2", "2"),
    )
    table = (tmp_path / "ablations.md").read_text()
    assert "| 0.8 +- 0.1 |" in table
    assert re.search(r"\| 2 +\| 2 +\| 700 +\| 0\.7 +\| 0\.01 +\| 50 +\|", table)
    assert "| 0.979 +- 0.024 (Tetrominoes)" in table
    assert table in capsys.readouterr().out
    for folder in folders:
        (tmp_path / folder).mkdir()
    assert main([*line[:3], "--seeds", "1", "--steps", "700", "--rows", "full"]) == 0
    left = f"not in this table, but in {tmp_path}: full-seed1, reversed-seed0, reversed-seed1"
    assert left in capsys.readouterr().out


def test_an_interruption_keeps_the_rows_that_are_done(pretended, tmp_path, capsys):
    line = ["ablate", "--out", str(tmp_path), "--seeds", "1"]
    assert main(line) == INTERRUPTED
    rows = [*csv.DictReader((tmp_path / "ablations.csv").read_text().splitlines())]
    assert [row["ablation"] for row in rows] == ["full", "single-gru"]
    assert main([*line, "--rows", "reversd"]) == 2
    assert "--rows: no row is called reversd; did you mean reversed?" in capsys.readouterr().err


def test_short_runs_that_geco_does_not_change_are_told(pretended, tmp_path, capsys):
    line = ["ablate", "--out", str(tmp_path), "--seeds", "1", "--rows", "no-geco", "--steps"]
    note = "GECO begins after 1000 steps: until then no-geco is trained as full is."
    for steps, told in (("1000", f"{note}\n"), ("1001", "")):
        assert main([*line, steps]) == INTERRUPTED
        assert capsys.readouterr().out == told
    record = {"ablation": "full", "options": "", "published": "-"}
    assert ablate._markdown([record], note).endswith(f"below 0.8. {note}\n")


def test_a_row_without_numbers_has_none(tmp_path):
    record = {"ablation": "full", "options": "", **ablate._summary([], {"full-seed0": "nan"})}
    table = ablate._markdown([{**record, "published": "97.9"}])
    assert "| full     | -       | 1    | 1      | -     | -      | -   | -  | 97.9" in table
