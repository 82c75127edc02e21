"""The table of all models, with runs that take no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from emorl.bench import models


def test_runs_are_planned_measured_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[str, dict[str, str]]] = []

    def fake(core: int, command: str, *arguments: str) -> None:
        if command == "train":
            folder = Path(arguments[arguments.index("--out") + 1])
            options = dict(a.split("=") for a in arguments if "=" in a)
            trained.append((folder.name, options))
            folder.mkdir(parents=True)
            row = json.dumps({"step": 40, "images_per_second": 80.0})
            (folder / "metrics.jsonl").write_text(f"{row}\n{row}\n")
        else:
            good = "monet-0" not in arguments[0]
            numbers = {"fg_ari": 0.9 if good else 0.4, "fg_miou": 0.8, "mse": 0.01}
            metrics = {name: {"mean": value} for name, value in numbers.items()}
            Path(arguments[arguments.index("--json") + 1]).write_text(
                json.dumps({"metrics": metrics})
            )

    monkeypatch.setattr(models, "emorl", fake)
    out = tmp_path / "models.json"
    options = ["--models", "slot_attention", "monet", "--minutes", "2", "--cores", "0"]
    places = ["--runs", str(tmp_path / "runs"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["models", *options, *places])
    models.main()

    runs = ["slot_attention-0", "slot_attention-1", "slot_attention-2", "monet-0"]
    assert [name for name, _ in trained] == ["slot_attention-trial", "monet-trial", *runs]
    assert trained[0][1]["--trainer.max_minutes"] == "0.1"
    planned = int(0.96 * 120 * 80 / 8)  # steps in two minutes, batches of 8
    assert trained[3][1] == {
        "--trainer.eval_every": "0",
        "--trainer.picture_every": "0",
        "--trainer.least_steps": "null",
        "--trainer.seed": "1",
        "--trainer.steps": str(planned),
        "--trainer.cooldown_steps": str(planned // 2),
        "--trainer.max_minutes": "2.0",
    }
    printed = capsys.readouterr().out
    assert "| Slot Attention | 3 | 3 | 0 | 40 | 0.900 (0.900 to 0.900) |" in printed
    assert "| MONet | 4 | 1 | 1 | 40 | 0.400 | 0.800 | 0.0100 | 0.400 |" in printed
    record = json.loads(out.read_text())
    assert [(run["model"], run["seed"]) for run in record["runs"]] == [
        *(("slot_attention", seed) for seed in range(3)),
        ("monet", 0),
    ]

    trained.clear()
    models.main()
    assert trained == []
    assert json.loads(out.read_text()) == record
