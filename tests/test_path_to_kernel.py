"""How many files one reads from `emorl train` to the kernel of the likelihood.

Those that hold a Python frame of one training step, from the command line to the first call of
`mixture_nll`, and the C++ files that its binding and its CPU kernel are made of. There were 27 and
9; whoever adds one finds a reason here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType

from emorl.cli import main
from emorl.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, CSRC = str(ROOT / "emorl"), ROOT / "csrc"
LIKELIHOOD = str(ROOT / "emorl" / "ops" / "mixture_nll.py")
BINDING_AND_KERNEL = (CSRC / "mixture_nll.cpp", CSRC / "cpu" / "mixture_nll.cpp")


class Recorder:
    """A profile function that notes the package's files until the likelihood is called."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (path := frame.f_code.co_filename).startswith(PACKAGE):
            self.files.add(path)
            if path == LIKELIHOOD:
                sys.setprofile(None)

    def start(self, frame: FrameType | None) -> None:
        """Note the frames from the command line to here, and whatever is called from here on."""
        while frame is not None:
            if (path := frame.f_code.co_filename).startswith(PACKAGE):
                self.files.add(path)
            frame = frame.f_back
        sys.setprofile(self)


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


def test_few_files_lie_between_the_command_and_the_kernel(tmp_path, monkeypatch):
    recorder, step = Recorder(), Trainer._train_step

    def recorded_step(self, *arguments):
        recorder.start(sys._getframe(1))
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", recorded_step)
    try:
        main(["train", "--config=smoke", f"--out={tmp_path / 'run'}", "--trainer.steps=1"])
    finally:
        sys.setprofile(None)
    assert LIKELIHOOD in recorder.files
    python = sorted(str(Path(path).relative_to(ROOT)) for path in recorder.files)
    assert "emorl/ops/arguments.py" in python  # checks that all operators share
    assert len(python) <= 14, python
    cpp = sorted({x.relative_to(ROOT) for path in BINDING_AND_KERNEL for x in included(path)})
    assert len(cpp) <= 5, cpp
