"""What setup.py decides before it calls CMake."""

from __future__ import annotations

import platform
import runpy
from pathlib import Path

import pytest
import torch

from emorl.ops import _library

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("1", "EMORL_CUDA=1, but this torch is built without CUDA"),
        ("yes", "EMORL_CUDA: expected auto, 0 or 1, got 'yes'"),
    ],
)
def test_impossible_wishes_stop_the_build(
    build: dict, choice: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMORL_CUDA", choice)
    with pytest.raises(SystemExit, match=message):
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
    monkeypatch.setattr(_library, "build_record", lambda: record)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: here)
    obstacle = _library._load_obstacle()
    assert (obstacle is None) == fits
    assert fits or f"built for {built}" in obstacle
