"""How many files one reads from `emorl train` to the kernel of the likelihood.

Those that hold a Python frame of one training step, from the command line to the first call of
`mixture_nll`, and the C++ files that its binding and its CPU kernel are made of.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType

import pytest

from emorl.cli import main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, CSRC = ROOT / "emorl", ROOT / "csrc"
LIKELIHOOD = PACKAGE / "ops" / "mixture_nll.py"
BINDING_AND_KERNEL = (CSRC / "mixture_nll.cpp", CSRC / "cpu" / "mixture_nll.cpp")


class Recorder:
    """A profile function that notes the package's files between a step's start and the call."""

    def __init__(self) -> None:
        self.files: set[Path] = set()
        self.in_step = self.arrived = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event != "call" or self.arrived or PACKAGE not in path.parents:
            return
        if frame.f_code.co_name == "_train_step":
            self.in_step = True
            self.note_callers(frame)
        if self.in_step:
            self.files.add(path)
            self.arrived = path == LIKELIHOOD
        if self.arrived:
            sys.setprofile(None)

    def note_callers(self, frame: FrameType | None) -> None:
        """The frames from the command line down to a step."""
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if PACKAGE in path.parents:
                self.files.add(path)
            frame = frame.f_back


def python_files(run_dir: Path) -> set[Path]:
    recorder = Recorder()
    sys.setprofile(recorder)
    try:
        main(["train", "--config", "smoke", "--out", str(run_dir), "--trainer.steps=1"])
    finally:
        sys.setprofile(None)
    assert recorder.arrived
    return recorder.files


def included(path: Path) -> set[Path]:
    """A C++ file and all files of the project that it includes."""
    found, left = set(), [path]
    while left:
        file = left.pop().resolve()
        if file not in found:
            found.add(file)
            names = re.findall(r'#include "(.+?)"', file.read_text())
            candidates = [folder / name for name in names for folder in (file.parent, CSRC)]
            left += [x for x in candidates if x.is_file()]
    return found


def test_the_path_from_the_command_to_the_kernel_is_short(
    tmp_path: Path, record_property: pytest.FixtureRequest
) -> None:
    python = {path.relative_to(ROOT) for path in python_files(tmp_path / "run")}
    cpp = {x.relative_to(ROOT) for path in BINDING_AND_KERNEL for x in included(path)}
    print(len(python), *sorted(python), len(cpp), *sorted(cpp), sep="\n")
    assert len(python) <= 99
