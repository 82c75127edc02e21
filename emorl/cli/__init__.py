"""The command `emorl`: calls the subcommand and turns its errors into one line.

Each subcommand is a module of this package with `run(arguments) -> exit code`. It is imported when
it is called, so that `emorl --help` needs none of its packages.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TextIO

from emorl.extras import not_installed
from emorl.fields import shown
from emorl.suggestions import near
from emorl.terminal import Terminal, escape_letters, reserve_streams

COMMANDS = {
    "train": "train a model, or go on with a run",
    "evaluate": "measure a run, a checkpoint or a model folder on held-out images",
    "ablate": "train EfficientMORL's ablations at laptop size, and tabulate them",
    "traverse": "draw what each dimension of a run's slots changes, as pictures and films",
    "segment": "segment a folder of own pictures with a run's model",
    "report": "write a run's report.html anew",
    "data": "generate, convert or check data sets",
    "convert": "turn a released EfficientMORL checkpoint into a model folder",
    "bench": "time and memory of the models on this machine, as tables and plots",
    "info": "what is installed and what the fused ops can use here",
}
USAGE, FAILURE, INTERRUPTED = 2, 1, 128 + signal.SIGINT
"""Exit codes: a wrong argument, file or value; a failed run; Ctrl-C or SIGTERM."""

_ERRORS = (
    *(ValueError, ArithmeticError, OSError, RuntimeError, MemoryError),
    *(ImportError, AttributeError),  # of a module in place of a package
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOO_LARGE = ("DefaultCPUAllocator", "calculation overflowed", "multiplication overflow")
_WORKER, _NOT_SHARED = "DataLoader worker ", "shared memory(shm)"  # in torch's errors, as above
_SMALLER = {  # by command: what takes less memory
    "train": "a smaller batch, or raise --trainer.accumulation",
    "evaluate": "a smaller --batch-size",
    "bench": "smaller --sizes or a smaller --batch",
}
_FEWER = "take fewer --data.workers, a smaller batch or a larger /dev/shm"
_LONGEST = 500  # characters of a line for the user

_HELP = """usage: emorl COMMAND [ARGUMENTS]

Fast unsupervised object-centric learning.

{commands}

emorl COMMAND --help lists the arguments; emorl --version prints the version.
With EMORL_TRACEBACK=1 in the environment errors show where they came from."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit code: 0, or one of `USAGE`, `FAILURE` and `INTERRUPTED`.
    """
    reserve_streams()
    escape_letters()
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    try:
        code = _answer(command, rest)
        if sys.stdout is not None:
            sys.stdout.flush()  # at the exit of the process an error could not be told
        return code
    except KeyboardInterrupt:
        return _complain(command, "interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `emorl info | head -1`
        return FAILURE
    except _ERRORS as error:
        if os.environ.get("EMORL_TRACEBACK"):
            raise
        return _explain(command, error)
    finally:
        Terminal(sys.stdout).write("")  # drops what cannot be written, which the exit would repeat


def _answer(command: str, arguments: list[str]) -> int:
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
        print(_HELP.format(commands="\n".join(lines)))
        return 0
    if command == "--version":
        from emorl import __version__

        print(f"emorl {__version__}")
        return 0
    if command not in COMMANDS:
        return _complain("", f"unknown command {shown(command)}{near(command, COMMANDS)}", USAGE)
    code: int = importlib.import_module(f"emorl.cli.{command}").run(arguments)
    return code


def _explain(command: str, error: Exception) -> int:
    """One line about an error that the user can mend; other errors are raised again."""
    if another := _another_module(error):
        return _complain(command, another, USAGE)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package != "emorl":
            return _complain(command, not_installed(package) if package else str(error), USAGE)
    if isinstance(error, FileNotFoundError) and _is_nowhere():
        return _complain(command, "the current folder no longer exists", USAGE)
    if isinstance(error, OSError) and error.filename:
        return _complain(command, f"{error.filename}: {error.strerror}", USAGE)
    if isinstance(error, OSError) and _is_unwritable(sys.stdout, error):
        return _complain(command, f"standard output: {error.strerror}", USAGE)
    if lack := _lack(command, error):
        return _complain(command, lack, FAILURE)
    if isinstance(error, ValueError | OSError):
        return _complain(command, str(error), USAGE)
    if isinstance(error, ArithmeticError):
        return _complain(command, str(error), FAILURE)
    raise error


def _another_module(error: Exception) -> str:
    """What a module lacks that lies in the way of a package of its name, and where it is."""
    module: object = None
    if isinstance(error, AttributeError):
        module = error.obj
    elif isinstance(error, ModuleNotFoundError):
        module = sys.modules.get((error.name or "").rpartition(".")[0])
    elif isinstance(error, ImportError):
        module = sys.modules.get(error.name or "")
    if not isinstance(module, ModuleType) or module.__name__.startswith("emorl"):
        return ""
    return f"{error}: is {getattr(module, '__file__', None)} the package {module.__name__}?"


def _is_nowhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _is_unwritable(stream: TextIO | None, error: OSError) -> bool:
    """Whether an error that names no file is of a stream, such as on a full disk."""
    if getattr(stream, "write_through", False):  # no buffer has kept the text
        return error.errno in _FULL
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        return True
    return False


def _lack(command: str, error: Exception) -> str:
    """What an error says that the machine lacks, and what to try; nothing for other errors."""
    text, advice = str(error), _SMALLER.get(command)
    smaller = f": take {advice}" if advice else ""
    if text.startswith(_WORKER):
        what = text.removeprefix(_WORKER).rstrip(". ")
        return f"data worker {what}; if memory ran out, {_FEWER}"
    if _NOT_SHARED in text:
        return f"out of shared memory for the batches of data workers: {_FEWER}"
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of GPU memory{smaller}"
    # On the CPU, torch raises a RuntimeError like any other.
    if isinstance(error, MemoryError) or any(sign in text for sign in _TOO_LARGE):
        return f"out of memory{smaller}"
    return ""


def _complain(command: str, text: str, code: int) -> int:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
    print(f"emorl {command}".rstrip() + f": {line}", file=Terminal(sys.stderr))
    return code
