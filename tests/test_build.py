"""What setup.py decides before it calls CMake, and what it makes of CMake's failures."""

from __future__ import annotations

import json
import platform
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import build_testing
import pytest
import torch
from setuptools import Distribution

from emorl import info
from emorl.ops import extension

ROOT = Path(__file__).resolve().parents[1]
needs_cxx = pytest.mark.skipif(build_testing.CXX is None, reason="c++ is not on the PATH")
needs_nvcc = pytest.mark.skipif(build_testing.NVCC is None, reason="nvcc is not on the PATH")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict:
    """The names of setup.py; CUDA_HOME is an empty folder."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("EMORL_CUDA", raising=False)
    return runpy.run_path(str(ROOT / "setup.py"), run_name="build")


def add_nvcc(cuda_home: Path) -> str:
    nvcc = cuda_home / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)
    return str(nvcc)


def test_finds_the_torch_that_is_installed(build: dict) -> None:
    assert build["find_torch"]() == Path(torch.__file__).parent


def test_a_toolkit_alone_is_no_reason_for_cuda(build: dict, tmp_path: Path) -> None:
    add_nvcc(tmp_path)
    assert build["decide_cuda"](None) == (None, "this torch is built without CUDA")


def test_cuda_needs_a_toolkit(build: dict) -> None:
    assert build["decide_cuda"]("13.0") == (None, "no CUDA toolkit found (set CUDA_HOME)")


def test_cuda_where_torch_and_toolkit_are_there(build: dict, tmp_path: Path) -> None:
    nvcc = add_nvcc(tmp_path)
    assert build["decide_cuda"]("13.0") == (nvcc, "torch is built for CUDA 13.0")


def test_cuda_can_be_refused(build: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_nvcc(tmp_path)
    monkeypatch.setenv("EMORL_CUDA", "0")
    assert build["decide_cuda"]("13.0") == (None, "EMORL_CUDA=0")


def test_unknown_wishes_stop_the_build(build: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMORL_CUDA", "yes")
    with pytest.raises(SystemExit, match="EMORL_CUDA: expected auto, 0 or 1, got 'yes'"):
        build["decide_cuda"](None)


def test_a_missing_tool_is_named(build: dict) -> None:
    with pytest.raises(build["CannotBuildError"], match="emorl-no-such-tool not found"):
        build["find_tool"]("emorl-no-such-tool")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have no choice")
@pytest.mark.parametrize(
    ("choice", "flags", "expected"),
    [
        (None, "fma avx2 avx512f avx512dq avx512bw avx512vl", "AVX512"),
        ("auto", "fma avx2 avx512f avx512dq avx512vl", "AVX2"),
        ("auto", None, "AVX2"),
        ("AVX512", "fma avx2", "AVX512"),
        ("AVX2", "fma avx2 avx512f avx512dq avx512bw avx512vl", "AVX2"),
    ],
)
def test_vectors_of_the_cpu(
    build: dict,
    choice: str | None,
    flags: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("EMORL_CPU", raising=False)
    if choice:
        monkeypatch.setenv("EMORL_CPU", choice)
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setitem(build["decide_cpu"].__globals__, "CPUINFO", tmp_path / "cpuinfo")
    assert build["decide_cpu"]() == expected


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have no choice")
def test_unknown_vectors_stop_the_build(build: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMORL_CPU", "avx")
    with pytest.raises(SystemExit, match="EMORL_CPU: expected auto, AVX2 or AVX512, got 'avx'"):
        build["decide_cpu"]()


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("AVX512", "AVX512", True),
        ("AVX2", "AVX512", True),
        ("DEFAULT", "SVE256", True),
        ("AVX512", "AVX2", False),
        ("AVX2", "DEFAULT", False),
    ],
)
def test_the_extension_is_loaded_only_where_its_vectors_exist(
    built: str, here: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"native": True, "torch": torch.__version__, "cpu": built}
    monkeypatch.setattr(extension, "build_record", lambda: record)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: here)
    obstacle = extension._load_obstacle()
    assert (obstacle is None) == fits
    assert fits or f"built for {built}" in obstacle


STOPPED = "ninja: build stopped: subcommand failed.\n"


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("c++ x.cpp\nx.h:1:2: error: no\nx.h:2:2: error: nor this\n", "x.h:1:2: error: no"),
        ("nvcc warning : old\nnvcc fatal   : no sm_80\n" + STOPPED, "nvcc fatal   : no sm_80"),
        ("x.o: undefined reference to `f'\nld: error: 1\n", "x.o: undefined reference to `f'"),
        ("CMake Error: A is empty.\n", "CMake: A is empty."),
        ("-- CXX\nCMake Error at a/b.cmake:24 (message):\n  The\n\n    nvcc\n", "CMake: The nvcc"),
        ("FAILED: x.o\nc++ x.cpp\nno licence\n" + STOPPED, "no licence"),
        ("", "no output"),
    ],
    ids=["compiler", "nvcc", "linker", "cmake", "cmake-long", "unknown", "silent"],
)
def test_the_reason_is_the_first_error(build: dict, output: str, error: str) -> None:
    assert build["first_error"](output) == error


ERROR = "fatal error: no licence"
# A broken tool: what it costs, the tool, the arguments that it fails on, the step that this ends.
FAULTS = {
    "cuda-configure": ("CUDA", "nvcc", "*CompilerId*", "configuring with CUDA"),
    "cuda-compile": ("CUDA", "nvcc", "*csrc*", "building with CUDA"),
    "cuda-link": ("CUDA", "c++", "*-shared*cudart*", "building with CUDA"),
    "cpu-configure": ("CPU", "c++", "*", "configuring"),
    "cpu-compile": ("CPU", "c++", "*csrc*", "building"),
    "cpu-link": ("CPU", "c++", "*-shared*", "building"),
}


def broken(*names: str) -> pytest.MarkDecorator:
    marks = {"CUDA": needs_nvcc, "CPU": needs_cxx}
    params = [pytest.param(*FAULTS[x], id=x, marks=marks[FAULTS[x][0]]) for x in names]
    return pytest.mark.parametrize(("lost", "tool", "fails_on", "step"), params)


class Build:
    """What setup.py does to a project of empty sources but one, with a compiler that fails."""

    def __init__(
        self, folder: Path, lost: str, tool: str, fails_on: str, module: str = "", **wishes: str
    ) -> None:
        cuda = None if lost == "CPU" else build_testing.toolkit_version()
        torch = build_testing.write_torch(folder / "site", cuda=cuda)
        project = build_testing.write_project(folder / "project")
        (project / "csrc/module.cpp").write_text(module)
        for name, real in (("nvcc", build_testing.NVCC), ("c++", build_testing.CXX)):
            pattern = fails_on if name == tool else "nothing"
            build_testing.write_tool(folder / "bin" / name, real, fails_on=pattern, error=ERROR)
        environment = build_testing.clean_environment(
            PYTHONPATH=torch.parent, CUDA_HOME=folder, CXX=folder / "bin/c++", **wishes
        )
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        result = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True
        )
        self.package = project / "emorl"
        self.exit_status = result.returncode
        self.output = result.stdout
        self.lines = [x for x in result.stdout.splitlines() if x.startswith("emorl: ")]
        self.complaint = result.stderr.splitlines()[-1:]
        self.record = json.loads((self.package / "_build.json").read_text())
        self.libraries = sorted(x.name for x in self.package.glob("*.so"))


def described(record: dict, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `emorl info` says about the extension of a build."""
    if not record["native"]:
        monkeypatch.setattr(extension, "build_record", lambda: record)
        return extension._load_obstacle()
    built = {"torch": record["torch"], "cuda": False, "compiler": "12.2.0", "flags": "-O3"}
    monkeypatch.setattr(info, "build_record", lambda: record)
    monkeypatch.setattr(info, "extension", lambda: SimpleNamespace(build_info=lambda: built))
    return info._extension()


@needs_nvcc
def test_builds_with_cuda_where_nothing_fails(tmp_path: Path) -> None:
    build = Build(tmp_path, "nothing", "nvcc", "nothing", EMORL_CUDA="1")
    version = build_testing.toolkit_version()
    assert build.exit_status == 0, build.output
    assert build.record["cuda"] == f"torch is built for CUDA {version}"
    assert build.lines == [f"emorl: CUDA on: {build.record['cuda']}"]
    needed = (build.package / build.libraries[0]).read_bytes()
    assert f"libcudart.so.{version.split('.')[0]}\0".encode() in needed  # torch's, not its own


@needs_cxx
def test_a_static_standard_library_stays_inside(tmp_path: Path) -> None:
    """Where a compiler has no shared one; torch's would replace a part of what is exported."""
    source = "#include <ostream>\nvoid print(std::ostream& to, long x) { to << x; }\n"
    wishes = {"EMORL_CUDA": "0", "LDFLAGS": "-static-libstdc++"}
    build = Build(tmp_path, "nothing", "c++", "nothing", source, **wishes)
    assert build.exit_status == 0, build.output
    symbols = subprocess.run(
        ["nm", "--dynamic", "--demangle", "--defined-only", build.package / build.libraries[0]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "std::ostream::" not in symbols


@broken(*FAULTS)
def test_auto_does_without_what_does_not_build(
    lost: str,
    tool: str,
    fails_on: str,
    step: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = Build(tmp_path, lost, tool, fails_on)
    assert build.exit_status == 0, build.output
    reason = f"{step} failed: {ERROR}"
    if lost == "CUDA":
        cpu = build.record["cpu"]
        assert build.lines[1:] == [f"emorl: CUDA off: {reason}"]
        assert build.record == {"native": True, "torch": "2.99.0", "cpu": cpu, "cuda": reason}
        assert [name[:10] for name in build.libraries] == ["_C.cpython"]
    else:
        assert build.lines[1:] == [f"emorl: installing WITHOUT the native extension: {reason}"]
        assert build.record == {"native": False, "reason": reason}
        assert build.libraries == []
    assert reason in described(build.record, monkeypatch)


@broken("cuda-configure", "cuda-compile", "cpu-configure", "cpu-compile")
def test_what_was_asked_for_is_built_or_the_build_fails(
    lost: str, tool: str, fails_on: str, step: str, tmp_path: Path
) -> None:
    asked = {"CUDA": ("EMORL_CUDA", "1"), "CPU": ("EMORL_CPU", "AVX2")}[lost]
    build = Build(tmp_path, lost, tool, fails_on, **dict([asked]))
    reason = f"{step} failed: {ERROR}"
    assert build.exit_status == 1
    assert build.complaint == [f"emorl: {'='.join(asked)}, but {reason}"]
    assert ERROR in build.output
    assert build.record == {"native": False, "reason": reason}
    assert build.libraries == []


def test_an_impossible_choice_costs_no_build(
    build: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMORL_SANITIZE", "yes")
    monkeypatch.setitem(build["CMakeBuild"].run.__globals__, "ROOT", tmp_path)
    (tmp_path / "emorl").mkdir()
    library = tmp_path / "emorl" / "_C.old.so"
    library.touch()
    command = build["CMakeBuild"](Distribution({"ext_modules": []}))
    command.inplace = True
    command.build_lib = str(tmp_path / "build")
    with pytest.raises(SystemExit, match="EMORL_SANITIZE: expected 0 or 1, got 'yes'"):
        command.run()
    assert library.exists()


def test_an_empty_choice_is_none(build: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMORL_CPU", "")
    assert build["chosen"]("EMORL_CPU") == "auto"


@pytest.mark.parametrize(
    "text", ['{"native": tr', "[]", '{"native": true}', '{"native": false}', "\xff", "[" * 100_000]
)
def test_a_damaged_record_is_a_reason(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ops").mkdir()
    (tmp_path / "_build.json").write_bytes(text.encode("latin-1"))
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "ops" / "extension.py"))
    obstacle = extension._load_obstacle()
    assert obstacle is not None
    assert "_build.json is damaged; rebuild with" in obstacle
