"""`emorl train`: a configuration, dotted overrides, a run folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from emorl.cli import INTERRUPTED
from emorl.cli.arguments import Parser
from emorl.runs import RunFolder

_USAGE = "emorl train --config NAME|FILE [--out DIR] [--resume auto] [--KEY VALUE ...]"


def run(arguments: list[str]) -> int:
    """Train, and print where the run is and how to resume it."""
    parser = Parser("train", "Train a model.")
    for name in ("config", "model", "out"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--resume", choices=["auto"])
    if {"-h", "--help"} & {*arguments}:
        options, _ = parser.parse_known_args([a for a in arguments if a not in ("-h", "--help")])
        return _print_help(options.model)
    options, overrides = parser.parse_known_args(arguments)
    path = _config_path(options)

    from emorl.training.config_file import load_config

    config = load_config(path, options.model, overrides)
    out = Path(options.out or f"runs/{config.model}/{path.stem}")

    from emorl.report import write_report
    from emorl.runs.log import Terminal
    from emorl.training.run import prepare

    trainer = prepare(config, out, resume=options.resume is not None)
    is_main = trainer.accelerator.is_main_process
    result = trainer.run()
    trainer.accelerator.end_training()
    if not is_main:
        return INTERRUPTED if result.interrupted else 0
    terminal = Terminal(sys.stdout)
    if result.interrupted:
        print(
            f"stopped after step {result.step} of {result.steps} and saved", end="; ", file=terminal
        )
        print(f"go on with: emorl train --out {out} --resume auto", file=terminal)
        return INTERRUPTED
    write_report(out)
    print(f"{result.step} steps done; see {RunFolder(out).report}", file=terminal)
    return 0


def _config_path(options: argparse.Namespace) -> Path:
    """The configuration's file."""
    from emorl.training.config_file import config_names, find_config

    if options.config is None and options.out and options.resume:
        run = RunFolder(options.out)
        if not run.config.is_file():
            raise ValueError(
                f"--out: {run.path} holds no run to resume; to begin one give --config"
            )
        return run.config
    if options.config is None:
        names = ", ".join(config_names(options.model))
        raise ValueError(f"--config: a file or one of {names} is needed")
    return find_config(options.config, options.model)


def _print_help(model: str | None) -> int:
    from emorl.training.config_file import DEFAULT_MODEL, build_parser, config_names

    parser = build_parser(model or DEFAULT_MODEL)
    parser.usage = _USAGE
    parser.add_argument("--out", type=Path, help="the run's folder; null: runs/MODEL/NAME")
    parser.add_argument(
        "--resume",
        choices=["auto"],
        help="go on from the newest checkpoint in the folder, or begin if there is none",
    )
    print(parser.format_help())
    print(f"Configurations of {model or DEFAULT_MODEL}: {', '.join(config_names(model))}")
    return 0
