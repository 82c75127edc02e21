"""Private names of torch, which another version may lack: the few for which nothing public does."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emorl.ops.library import constant_when_compiled

PACKAGE = Path(__file__).resolve().parents[1] / "emorl"

# torch 2.11.0 and 2.13.0 have them all.
PRIVATE = {
    "torch._C._dispatch_has_kernel_for_dispatch_key": "which kernels the extension brought",
    "torch._C._functorch": "which transforms of torch.func are under way",
    "torch._assert_async": "a check on a GPU that does not wait for it",
    "torch._disable_dynamo": "torch.compiler.disable, but the compiler is imported when needed",
    "torch._dynamo.reset": "a benchmark starts without compiled code",
    "torch._subclasses.fake_tensor": "emorl.macs counts without computing",
    "torch.autograd.forward_ad._current_level": "whether forward mode is on, within a microsecond",
    "torch.utils._python_dispatch": "emorl.macs sees every operator",
    "torch.utils._pytree": "the tensors among an operator's results",
}


def used() -> set[str]:
    """Every private name of torch in the package; `torch._check` is documented."""
    text = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    names = set(re.findall(r"(?<![\w.])torch(?:\.\w+)*?(?:\._[A-Za-z]\w*)+(?:\.[a-z]\w*)?", text))
    names |= {f"torch.autograd.{x}" for x in re.findall(r"(?<![\w.])forward_ad\._\w+", text)}
    return names - {"torch._check"}


def test_no_other_private_name_is_used() -> None:
    known = {next((known for known in PRIVATE if x.startswith(known)), x) for x in used()}
    assert known == set(PRIVATE)


@pytest.mark.parametrize("name", PRIVATE)
def test_this_torch_has_the_name(name: str) -> None:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return
    pytest.fail(f"no module of {name}")


def test_marks_a_constant_as_torch_does() -> None:
    def own() -> None: ...
    def other() -> None: ...

    assert vars(constant_when_compiled(own)) == vars(torch.compiler.assume_constant_result(other))


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("import emorl.models", {"torch._dynamo"}),
        ("import emorl.compat.lucidrains", {"einops", "h5py", "scipy", "emorl.models"}),
        ("import emorl.training.config_file", {"torch._dynamo", "accelerate", "matplotlib"}),
        ("import emorl.training.options, emorl.runs.lock", {"torch", "numpy", "yaml"}),
    ],
)
def test_what_is_imported_late(program: str, absent: set[str]) -> None:
    """The compiler alone takes as long as torch, and a slip need not wait for either."""
    program += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert not absent & {*done.stdout.decode().split()}


@pytest.mark.parametrize(
    "line",
    [
        "train",
        "train --config smok",
        "train --config smoke --model slotty",
        "train --config smoke --resume yes",
        "train --out no --resume auto",
        "train --config smoke --out .",
        "evaluate . --images 0",
        "convert x.pth --config no.json --out y",
        "trian",
    ],
)
def test_a_refusal_without_torch(line: str) -> None:
    program = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        f"from emorl.cli import main; sys.exit(main({line.split()}))"
    )
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert b"torch" not in done.stderr
    assert done.stderr.count(b"\n") == 1
