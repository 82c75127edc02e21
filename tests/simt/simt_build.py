"""Builds the simulator: the native extension with its CUDA kernels compiled by g++ for the CPU.

Objects are kept by what they are made from, so a changed source costs its own compilation alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
DEVICE = HERE / "simt.cpp"
NAME = "a CPU, simulated by tests/simt"
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
OLDEST_COMPILER = 11
OTHERS = ("module", "tensor_memory")  # of no one operator
SANITIZE = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    "-g1",
)


def obstacle() -> str | None:
    """Why there can be no simulator here, if so."""
    if shutil.which("g++") is None:
        return "g++ is not on the PATH"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True).stdout.strip()
    if int(version.split(".")[0]) < OLDEST_COMPILER:
        return f"g++ {OLDEST_COMPILER} or newer is needed, this is {version}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are not installed"
    return None


@dataclass(frozen=True)
class Simulator:
    """What is built in `folder`, and from which sources.

    `source` is emorl's root or a copy of it whose `csrc` differs. `folder/emorl` is the package,
    `folder/objects` what was compiled.
    """

    folder: Path
    source: Path = ROOT
    flags: tuple[str, ...] = ()  # of the kernels and the emulator
    objects: Path = ROOT / "build" / "simt" / "objects"

    @property
    def kernels(self) -> Path:
        """The library of CUDA kernels and the simulated device."""
        return self.folder / "emorl" / "libemorl_simt.so"

    def build(self) -> None:
        """Compile what changed, link, and copy the package beside it.

        Raises:
            RuntimeError: If a source does not compile; with the compiler's message.
        """
        kernels = sorted((self.source / "csrc/cuda").glob("*.cu"))
        names = [*OTHERS, *(path.stem for path in kernels)]
        bindings = [self.source / f"csrc/{name}.cpp" for name in names]
        compiled = self.compile([*bindings, *kernels, DEVICE])
        package = self.folder / "emorl"
        shutil.rmtree(package, ignore_errors=True)
        ignored = shutil.ignore_patterns("_C*", "_build.json", "__pycache__")
        shutil.copytree(ROOT / "emorl", package, ignore=ignored)
        record = {"native": True, "torch": torch.__version__, "cpu": "DEFAULT", "cuda": NAME}
        (package / "_build.json").write_text(json.dumps(record))
        self.link(compiled[len(bindings) :], self.kernels)
        torch_libraries = Path(torch.__file__).parent / "lib"
        libraries = [f"-L{torch_libraries}", "-ltorch_cpu", "-lc10"]
        libraries += [f"-L{package}", "-lemorl_simt", "-Wl,-rpath,$ORIGIN"]
        self.link(compiled[: len(bindings)], package / "_C.so", *libraries)

    def compile(self, sources: list[Path]) -> list[Path]:
        """Objects of sources, several made at once."""
        self.objects.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._compile, sources))

    def link(self, objects: list[Path], target: Path, *libraries: str) -> None:
        """Make a shared library."""
        target.parent.mkdir(parents=True, exist_ok=True)
        _run(["g++", "-shared", *self.flags, *map(str, objects), "-o", str(target), *libraries])

    def run_tests(
        self, *names: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run what runs native operators in the test files whose names begin so."""
        files = sorted({str(x) for name in names for x in ROOT.glob(f"tests/ops/{name}*.py")})
        options = ["-q", "-p", "simt_plugin", "-p", "no:cacheprovider"]
        command = [sys.executable, "-m", "pytest", *options, "-o", f"pythonpath={self.folder}"]
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        variables = {"PYTHONPATH": path, "EMORL_TEST_DEVICE": "cpu", **(environment or {})}
        return subprocess.run(
            [*command, *files], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
        )

    def _compile(self, source: Path) -> Path:
        flags = ["-std=c++20", "-O1", "-fPIC", "-w", *_definitions(source)]
        flags += self.flags if source.suffix == ".cu" or source == DEVICE else ()
        key = hashlib.sha256(json.dumps([flags, torch.__version__, _compiler()]).encode())
        for path in sorted(_included(source, self._folders())):
            key.update(path.read_bytes())
        target = self.objects / f"{source.stem}-{key.hexdigest()[:24]}.o"
        if not target.exists():
            part = target.with_suffix(f".{os.getpid()}")  # renamed when complete
            inputs = [*self._include_flags(), "-x", "c++", str(source)]
            _run(["g++", *flags, *inputs, "-c", "-o", str(part)])
            part.replace(target)
        return target

    def _folders(self) -> list[Path]:
        return [self.source / "csrc", HERE / "include", HERE]

    def _include_flags(self) -> list[str]:
        torch_folder = Path(torch.__file__).parent / "include"
        system = [torch_folder, torch_folder / "torch/csrc/api/include"]
        system.append(Path(sysconfig.get_path("include")))
        return [f"-I{x}" for x in self._folders()] + [f"-isystem{x}" for x in system]


def _definitions(source: Path) -> list[str]:
    if source.stem != "module":
        return ["-DEMORL_SIMT=1"]
    names = {
        "EMORL_TORCH_VERSION": torch.__version__,
        "EMORL_CAPABILITY": "DEFAULT",
        "EMORL_CUDA_ARCHITECTURES": NAME,
        "EMORL_FLAGS": "-O1",
    }
    return ["-DEMORL_CUDA=1", *(f'-D{name}="{x}"' for name, x in names.items())]


def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout


def _included(source: Path, folders: list[Path]) -> set[Path]:
    """A source and all files of `folders` that it includes."""
    found, left = set(), [source]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            names = INCLUDE.findall(path.read_text())
            candidates = [folder / name for name in names for folder in (path.parent, *folders)]
            left += [x.resolve() for x in candidates if x.is_file()]
    return found


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-8000:]}")


if __name__ == "__main__":  # for benchmarks/sanitize.sh
    Simulator(ROOT / "build" / "simt-sanitize", flags=SANITIZE).build()
