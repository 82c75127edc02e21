"""Stand-ins for builds: a project of empty sources, a torch of empty libraries, broken tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NVCC = shutil.which("nvcc")
CXX = shutil.which("c++")


def toolkit_version() -> str:
    """Of this machine's nvcc, else one that no torch is built for."""
    if NVCC is None:
        return "0.0"
    text = subprocess.run([NVCC, "--version"], capture_output=True, text=True).stdout
    return re.search(r"release ([\d.]+)", text)[1]


def write_torch(folder: Path, *, cuda: str | None, include: Path = Path("nowhere")) -> Path:
    """A package `torch` with the headers in `include` and all libraries that a build links."""
    torch = folder / "torch"
    (torch / "lib").mkdir(parents=True)
    (torch / "include").symlink_to(include)
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text(f"__version__ = '2.99.0'\ncuda = {cuda!r}\n")
    for name in ("c10", "torch_cpu", "c10_cuda", "torch_cuda"):
        library = torch / "lib" / f"lib{name}.so"
        subprocess.run([CXX, "-shared", "-x", "c++", os.devnull, "-o", library], check=True)
    return torch


def write_project(folder: Path) -> Path:
    """This project's build with empty C++ and CUDA sources, and what an earlier build left."""
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder)
    for source in (ROOT / "csrc").rglob("*.c*"):
        copy = folder / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    package = folder / "emorl"
    package.mkdir()
    for name in ("__init__.py", "_C.earlier.so", "_build.json"):
        (package / name).touch()
    return folder


def write_tool(path: Path, real: str | None, *, fails_on: str, error: str) -> None:
    """A compiler that is `real` but for arguments that the shell pattern `fails_on` matches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!/bin/sh\ncase \"$*\" in {fails_on}) echo '{error}' >&2; exit 1;; esac\n"
        f'exec {real} "$@"\n'
    )
    path.chmod(0o755)


def clean_environment(**changes: object) -> dict[str, str]:
    """The environment without what steers a build."""
    steering = ("EMORL_", "CMAKE_", "CUDA", "CXX", "CPLUS_", "LDFLAGS")
    kept = {name: x for name, x in os.environ.items() if not name.startswith(steering)}
    return kept | {name: str(x) for name, x in changes.items()}
