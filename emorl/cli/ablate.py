"""`emorl ablate`: the ablations of EfficientMORL's Table 2, trained and put into one table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emorl.cli import train
from emorl.cli.arguments import Parser, local_path, whole_number
from emorl.fields import shown
from emorl.runs.files import write_atomically
from emorl.runs.folder import step_of
from emorl.runs.outputs import TABLE, require_output
from emorl.suggestions import near

_DESCRIPTION = (
    "Train the full EfficientMORL and its ablations (Table 2 of Emami et al., 2021) at laptop "
    "size, measure each on held-out images, and write ablations.md and ablations.csv. A run is a "
    "folder in OUT; called again, the command goes on where it was stopped."
)
_LEAST_FG_ARI = 0.8
_METRICS = {"fg_ari": "FG-ARI", "mse": "MSE", "kl": "KL"}

Record = dict[str, Any]


def run(arguments: list[str]) -> int:
    """Train, measure and tabulate."""
    options = _parser().parse(arguments)
    files = [options.out / f"ablations.{ending}" for ending in ("md", "csv")]
    for file in files:
        require_output(file, "--out", TABLE)

    from emorl.models.geco import WARM_START
    from emorl.training.ablations import ABLATIONS

    rows, note = _chosen(options.rows, ABLATIONS), ""
    if "no-geco" in rows and options.steps <= WARM_START:
        note = f"GECO begins after {WARM_START} steps: until then no-geco is trained as full is."
        print(note)
    records: list[Record] = []
    for name in rows:
        ablation, results, failures = ABLATIONS[name], [], {}
        for seed in range(options.seeds):
            folder = options.out / f"{name}-seed{seed}"
            place = ["--out", str(folder), "--resume=auto"]
            try:
                if code := train.run([*ablation.options(options.steps, seed), *place]):
                    return code
                results.append(_measured(folder, options.images))
            except ArithmeticError as error:
                failures[folder.name] = str(error)
        changed = ", ".join(f"{key}={value}" for key, value in ablation.changed.items())
        record = {"ablation": name, "options": changed, **_summary(results, failures)}
        records.append({**record, "published": ablation.published})
        table = _markdown(records, note)
        for file, content in zip(files, (table.encode(), _csv(records)), strict=True):
            write_atomically(file, content)
    print(table, *(f"written: {file}" for file in files), sep="\n")
    if others := _others(options.out, [r["ablation"] for r in records], options.seeds):
        print(f"not in this table, but in {options.out}: {', '.join(others)}")
    return 0


def _others(out: Path, rows: Sequence[str], seeds: int) -> list[str]:
    """Runs that an earlier call with more rows or seeds has left."""
    own = {f"{row}-seed{seed}" for row in rows for seed in range(seeds)}
    return sorted({path.name for path in out.glob("*-seed*") if path.is_dir()} - own)


def _parser() -> Parser:
    parser = Parser("ablate", _DESCRIPTION)
    add = parser.add_argument
    add("--out", type=local_path, default=Path("runs/ablations"), help="folder of runs and table")
    add("--rows", nargs="+", metavar="ROW", help="of the table (default: all)")
    add("--seeds", type=whole_number(1), default=3, help="runs of each row")
    add("--steps", type=whole_number(1), default=14_000, help="of each run")
    add("--images", type=whole_number(1), default=320, help="to measure each run on")
    return parser


def _chosen(asked: Sequence[str] | None, known: Mapping[str, object]) -> list[str]:
    """The rows that are asked for, in the table's order."""
    for name in asked or ():
        if name not in known:
            raise ValueError(f"--rows: no row is called {shown(name)}{near(name, known)}")
    return [name for name in known if asked is None or name in asked]


def _measured(folder: Path, images: int) -> Record:
    """The evaluation of a run's newest checkpoint, on images that it was not trained on."""
    from emorl.data import open_dataset
    from emorl.evaluation import evaluate
    from emorl.models import find_model

    checkpoint, model = find_model(folder)
    data = {"data": "tetrominoes", "split": "test"}
    held_out = open_dataset(data["data"], split=data["split"])
    return {"checkpoint": str(checkpoint), **data, **evaluate(model, held_out, images=images)}


def _summary(results: Sequence[Record], failures: Mapping[str, str]) -> Record:
    """Runs, failures and steps, and the mean and spread of each metric over runs."""
    from emorl.evaluation.summaries import across_runs

    if not results:
        return {"runs": len(failures), "failed": len(failures)}
    found = across_runs(results, failures, least_fg_ari=_LEAST_FG_ARI)
    steps = sorted({step_of(Path(result["checkpoint"])) for result in results})
    kinds = ("mean", "std")[: len(results)]  # one run has no spread
    return {
        "runs": found["runs"],
        "failed": len(found["failures"]),
        "steps": ", ".join(map(str, steps)),
        **{f"{name}_{kind}": found["metrics"][name][kind] for name in _METRICS for kind in kinds},
    }


def _markdown(records: Sequence[Record], note: str = "") -> str:
    """The table, and below it what its numbers are."""
    from emorl.bench.tables import as_text

    titles = ["ablation", "options", "runs", "failed", "steps", *_METRICS.values()]
    rows = [[*titles, "FG-ARI in the paper"]]
    for record in records:
        plain = [str(record.get(key, "-")) for key in ("runs", "failed", "steps")]
        numbers = [_number(record, name) for name in _METRICS]
        named = [record["ablation"], record["options"] or "-"]
        rows.append([*named, *plain, *numbers, record["published"]])
    failed = f"failed: not finite, or FG-ARI below {_LEAST_FG_ARI:g}"
    below = f"Mean and standard deviation over runs; {failed}. {note}".rstrip()
    return f"{as_text(rows)}\n\n{below}\n"


def _number(record: Record, name: str) -> str:
    """The mean of a metric over runs, and its spread if there are several."""
    mean, std = record.get(f"{name}_mean"), record.get(f"{name}_std")
    if mean is None:
        return "-"
    return f"{mean:.4g}" if std is None else f"{mean:.4g} +- {std:.2g}"


def _csv(records: Sequence[Record]) -> bytes:
    text = io.StringIO()
    names = [*dict.fromkeys(name for record in records for name in record)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()
