"""`emorl bench`: time and memory of the models on this machine, as tables and plots."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl.cli import FAILURE, INTERRUPTED
from emorl.cli.arguments import Parser, local_path, whole_number
from emorl.fields import shown
from emorl.paths import local
from emorl.runs.files import write_atomically
from emorl.runs.outputs import BENCHMARK, PAGE, PICTURE, require_output
from emorl.suggestions import near

if TYPE_CHECKING:
    from emorl.bench.suite import Options, Suite

_SECONDS = {"s": 1, "min": 60, "h": 3600}
_BYTES = {"MiB": 2**20, "GiB": 2**30}
_MEMORY = 11 * _BYTES["GiB"]
_BYTES_A_VALUE = 4  # of an image, in float32


def run(arguments: list[str]) -> int:
    """Measure, print tables, and write record and plots; or compare two records."""
    asked = _parser().parse(arguments)

    import emorl.report.backend  # noqa: F401  # before matplotlib, which the suites import
    from emorl.bench import kernels, suites
    from emorl.bench.tables import as_text

    if asked.compare:
        print(as_text(suites.compare(*asked.compare)))
        return 0
    asked.suite = asked.suite or ("peers" if asked.peer else "paper")
    suite = _known(suites.SUITES, asked.suite, "--suite")
    options = _options(asked, suite)
    suite.check(options)
    if asked.dry_run:
        print(as_text(suite.outline(options)))
        return 0
    _require_device(options.device)
    kernels.require(asked.allow_reference, options.device)
    return _measure(asked.suite, suite, options, asked)


def _parser() -> Parser:
    parser = Parser("bench", "Time and memory of the models on this machine.")
    add = parser.add_argument
    add(
        "--suite",
        help="paper, ops, step, data, quality or peers (default: paper; with --peer, peers)",
    )
    add("--models", nargs="+", help="of the suite (default: all)")
    add(
        "--sizes",
        nargs="+",
        type=whole_number(1),
        help="sides of the images (default: the suite's)",
    )
    add("--batch", type=whole_number(1), help="images at once (default: the suite's)")
    add(
        "--device",
        choices=("cpu", "cuda"),
        help="to measure on (default: a GPU where there is one)",
    )
    add(
        "--out",
        type=local_path,
        default=Path("runs/bench"),
        help="folder of the record and the plots",
    )
    add(
        "--official",
        type=local_path,
        metavar="PATH",
        help="a checkout of EfficientMORL's released code",
    )
    add(
        "--peer",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "PATH"),
        help="suite peers: a peer, and a checkout of its code; can be repeated",
    )
    add("--threads", type=whole_number(1), help="of PyTorch (default: OMP_NUM_THREADS, or all)")
    add("--budget", type=_quantity(_SECONDS), default="20min", help="time for everything")
    add("--memory", type=_quantity(_BYTES), help="for the largest batch (default: 11GiB)")
    add("--dry-run", action="store_true", help="list what would run")
    add("--html", action="store_true", help="also write one page with all plots and tables")
    add(
        "--compare",
        nargs=2,
        type=local_path,
        metavar=("A.json", "B.json"),
        help="ratios of two records",
    )
    add(
        "--allow-reference",
        action="store_true",
        help="time plain PyTorch too, where operators have no native kernels",
    )
    return parser


def _quantity(units: dict[str, int]) -> Callable[[str], float]:
    """An argument's type: a positive number and its unit, such as 20min; in the smallest unit."""

    def parse(text: str) -> float:
        match = re.fullmatch(rf"(\d{{1,6}}(?:\.\d{{1,6}})?)({'|'.join(units)})", text)
        if match is None or float(match[1]) == 0:
            examples = " or ".join(f"20{unit}" for unit in units)
            raise argparse.ArgumentTypeError(f"expected {examples}, got {shown(text)}")
        return float(match[1]) * units[match[2]]

    return parse


def _options(asked: argparse.Namespace, suite: Suite) -> Options:
    """What the suite is asked for.

    Raises:
        ValueError: for what the suite does not have, and for a folder that is none.
    """
    import torch

    from emorl.bench import released
    from emorl.bench.suite import Options
    from emorl.memory import require_memory

    for model in asked.models or ():
        _known(suite.models, model, "--models")
    for option in ("sizes", "batch"):
        if getattr(asked, option) and not getattr(suite, option):
            raise ValueError(f"--{option}: suite {asked.suite} has its own")
    if asked.peer and asked.suite != "peers":
        raise ValueError(f"--peer: is of suite peers, not of {asked.suite}")
    for option in suite.unused:
        if getattr(asked, option):
            raise ValueError(f"--{option}: suite {asked.suite} has no use for it")
    if asked.official:
        released.check(asked.official)
    chosen = Options(
        models=tuple(model for model in suite.models if model in (asked.models or suite.models)),
        sizes=tuple(sorted({*(asked.sizes or suite.sizes)})),
        batch=asked.batch or suite.batch,
        device=asked.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        threads=asked.threads or torch.get_num_threads(),
        official=asked.official and asked.official.absolute(),
        budget=asked.budget,
        memory=int(asked.memory or _MEMORY),
        peers=tuple((name, _checkout(path)) for name, path in asked.peer),
    )
    images = max(1, chosen.batch)
    for side in chosen.sizes:
        what = f"--sizes and --batch: {images} images of {side}x{side}"
        require_memory(images * 3 * side**2 * _BYTES_A_VALUE, what)
    return chosen


def _checkout(path: str) -> Path:
    try:
        return local(path).absolute()
    except ValueError as error:
        raise ValueError(f"--peer: {error}") from None


def _known(choices: Any, name: str, option: str) -> Any:
    """The entry of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in choices:
        raise ValueError(f"{option}: unknown {shown(name)}{near(name, choices)}")
    return choices[name] if isinstance(choices, dict) else name


def _require_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: no GPU that torch can use; --dry-run lists what would run")


def _measure(name: str, suite: Suite, options: Options, asked: argparse.Namespace) -> int:
    """Measure, write and print; the exit code."""
    from emorl.bench import records
    from emorl.bench.tables import as_text

    file = asked.out / f"{name}.json"
    _require_free(file, asked.html)
    record = suite.run(options, lambda record: records.write(file, record))
    notes = _notes(record)
    written = [file, *_write_plots(asked.out, name, suite, record, notes, asked.html)]
    for table in suite.tables(record):
        print(as_text(table), end="\n\n")
    for line in notes:
        print(line)
    print(f"written: {', '.join(map(str, written))}")
    if record["interrupted"]:
        print("emorl bench: interrupted; what was measured is kept", file=sys.stderr)
        return INTERRUPTED
    return FAILURE if record["failures"] else 0


def _require_free(record: Path, with_page: bool) -> None:
    """Refuse to replace what is no record, plot or page of the suite's; plots are named later."""
    require_output(record, "--out", BENCHMARK)
    if with_page:
        require_output(record.with_suffix(".html"), "--out", PAGE)
    for ending in ("png", "svg"):
        for plot in record.parent.glob(f"{record.stem}-*.{ending}"):
            require_output(plot, "--out", PICTURE)


def _notes(record: dict[str, Any]) -> list[str]:
    """What there is to say about a record beside its tables."""
    return [
        *(f"failed: {line}" for line in record["failures"]),
        *(f"left out: {line}" for line in record["left_out"]),
    ]


def _write_plots(
    folder: Path,
    name: str,
    suite: Suite,
    record: dict[str, Any],
    notes: list[str],
    with_page: bool,
) -> list[Path]:
    """Write the figures as PNG and SVG, and the page if it is asked for."""
    from emorl.bench.page import page
    from emorl.report.backend import own_settings
    from emorl.report.pictures import picture

    with own_settings():
        figures = suite.figures(record)
    pictures = {figure: picture(drawn, "png") for figure, drawn in figures.items()}
    files = {f"{name}-{figure}.png": content for figure, content in pictures.items()}
    files |= {f"{name}-{fig}.svg": picture(drawn, "svg") for fig, drawn in figures.items()}
    if with_page:
        title = f"emorl bench: {name}"
        text = page(title, suite.caption(record), pictures, suite.tables(record), notes)
        files[f"{name}.html"] = text.encode()
    return [write_atomically(folder / file, content) for file, content in files.items()]
