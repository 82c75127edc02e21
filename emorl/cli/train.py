"""`emorl train`: a configuration, dotted overrides, a run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from emorl.cli import INTERRUPTED
from emorl.paths import is_path, local
from emorl.runs import RunFolder
from emorl.runs.lock import require_usable
from emorl.suggestions import near
from emorl.terminal import Terminal

if TYPE_CHECKING:
    from emorl.training.config import RunConfig

_USAGE = (
    "emorl train --config NAME|FILE [--out DIR] [--resume auto] [--KEY VALUE ...]\n"
    "       emorl train --data.train FOLDER [...]"
)


class _Options(NamedTuple):
    """What `emorl train` takes beside the keys of a configuration."""

    config: str | None = None
    model: str | None = None
    out: str | None = None
    resume: str | None = None


def run(arguments: list[str]) -> int:
    """Train, and print where the run is and how to resume it."""
    asked_help = {"-h", "--help"} & {*arguments}
    options, overrides = _split([a for a in arguments if a not in ("-h", "--help")])
    if asked_help:
        return _print_help(options, overrides)
    path = _config_path(options, overrides)
    if options.out and os.environ.get("WORLD_SIZE", "1") == "1":  # else another may have begun
        require_usable(RunFolder(options.out), resume=options.resume is not None)

    from emorl.training.config_file import load_config
    from emorl.training.images import require_files
    from emorl.training.own_images import is_own

    config = load_config(path, options.model, overrides)
    if not _has_images(overrides):
        _require_named_images(config.data.train, path)
    require_files(config.data)
    with _telling_of_check(config.data.train):
        if is_own(path):
            config = _following(config, path, options.model, overrides)
        return _train(config, path, options)


def _train(config: RunConfig, path: Path, options: _Options) -> int:
    """Train, write the report, and say what was done."""
    out = options.out or f"runs/{config.model}/{path.stem}"

    from emorl.cli.report import view_of
    from emorl.report import write_report
    from emorl.training.run import prepare

    trainer = prepare(config, out, resume=options.resume is not None)
    is_main = trainer.accelerator.is_main_process
    before = trainer.step
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
    write_report(out, view_of=view_of)
    done = "had been done, the report is written" if before == result.step else "done"
    print(f"{result.step} steps {done}; see {RunFolder(out).report}", file=terminal)
    return 0


def _split(arguments: Sequence[str]) -> tuple[_Options, list[str]]:
    """The command's own options, of which the last counts, and the configuration's keys."""
    from emorl.fields import shown
    from emorl.training.options import pairs_of

    pairs = pairs_of(arguments)
    own = {name: text for name, text in pairs if name in _Options._fields}
    for name, text in own.items():
        if not is_path(text):
            raise ValueError(f"--{name}: expected a name, got {shown(text)}")
    options = _Options(**own)
    if options.resume not in (None, "auto"):
        raise ValueError(f"--resume: expected auto, got {shown(options.resume)}")
    return options, [f"--{name}={text}" for name, text in pairs if name not in own]


def _following(
    config: RunConfig, path: Path, model: str | None, overrides: Sequence[str]
) -> RunConfig:
    """The run with the sizes that its images ask for, which are printed."""
    from emorl.training.config_file import load_config
    from emorl.training.options import pairs_of
    from emorl.training.own_images import describe_memory, follow

    found, lines = follow(config, dict(pairs_of(overrides)))
    config = load_config(path, model, [*found, *overrides])
    if os.environ.get("RANK", "0") == "0":
        print(*lines, describe_memory(config), sep="\n", file=Terminal(sys.stdout))
    return config


def _config_path(options: _Options, overrides: Sequence[str]) -> Path:
    """The configuration's file; images alone are enough for one of them."""
    from emorl.training.options import YOUR_IMAGES, config_names, find_config

    if options.config is not None:
        return find_config(options.config, options.model)
    run = RunFolder(options.out) if options.out else None
    if run and options.resume and run.config.is_file():
        return run.config
    known = config_names(options.model)
    if _has_images(overrides) and YOUR_IMAGES in known:
        return find_config(YOUR_IMAGES, options.model)
    if run and options.resume:
        raise ValueError(f"--out: {run.path} holds no run to resume; to begin one give --config")
    if run:
        require_usable(run, resume=False)
    others = ", or --data.train FOLDER for your images" if YOUR_IMAGES in known else ""
    raise ValueError(f"--config: a file or one of {', '.join(known)} is needed{others}")


@contextmanager
def _telling_of_check(train: str) -> Iterator[None]:
    """Errors about a file of a folder of pictures, which may have more such, say what lists all."""
    try:
        yield
    except ValueError as error:
        folder = os.path.abspath(local(train))
        if os.path.isdir(folder) and str(error).startswith(folder + os.sep):
            raise ValueError(f"{error}; emorl data check {train} lists all such") from None
        raise


def _has_images(overrides: Sequence[str]) -> bool:
    return any(override.startswith("--data.train=") for override in overrides)


def _require_named_images(train: str, path: Path) -> None:
    """Refuse a configuration whose images are not there.

    Raises:
        ValueError: with the option that names others.
    """
    from emorl.data import GENERATORS
    from emorl.data.open import WHERE, data_files

    if train in GENERATORS:
        return
    try:
        data_files(train)
    except ValueError:
        raise ValueError(
            f"--data.train: expected a file, a folder or a generator, since {path.name}'s {train} "
            f"is not there{near(train, GENERATORS)}; {WHERE}"
        ) from None


def _print_help(options: _Options, overrides: Sequence[str]) -> int:
    from emorl.training.config_file import load_config
    from emorl.training.config_help import describe_keys, option
    from emorl.training.options import DEFAULT_MODEL, YOUR_IMAGES, config_names

    config = None
    if options.config is not None or _has_images(overrides):
        config = load_config(_config_path(options, overrides), options.model)
    model = config.model if config else options.model or DEFAULT_MODEL
    names = ", ".join(config_names(model))
    print(f"usage: {_USAGE}\n\nTrain a model.\n")
    print(
        option(
            "--config", f"a YAML file, or one of {names} (default with --data.train: {YOUR_IMAGES})"
        )
    )
    print(option("--model", f"the model's name (default: the file's, or {DEFAULT_MODEL})"))
    print(option("--out", "the run's folder (default: runs/MODEL/CONFIG)"))
    print(option("--resume", "auto: go on from the newest checkpoint, or begin if there is none"))
    whose = "of this configuration" if config else "where the configuration sets none"
    print(f"\nIts keys, with the values {whose} (--config NAME --help has NAME's):")
    print(f"\n{describe_keys(model, config)}")
    return 0
