"""Nobody gets the slow reference unawares."""

from __future__ import annotations

import warnings

import pytest
import torch

from emorl.bench import kernels
from emorl.ops import extension, library, slot_attention

Q, K = torch.rand(1, 2, 4), torch.rand(1, 5, 4)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native kernels are missing, and nobody has been told yet."""
    monkeypatch.setitem(
        library.obstacles["slot_attention"]["native"], "cpu", "no compiler; get one"
    )
    monkeypatch.setattr(library, "_told", [])


def told(backend: library.Backend, calls: int = 3, *, compiled: bool = False) -> list[str]:
    """The warnings of some calls."""
    torch.compiler.reset()
    call = torch.compile(slot_attention, backend="eager", fullgraph=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(calls):
            (call if compiled else slot_attention)(Q, K, K, backend=backend)
    return [str(w.message) for w in found if "emorl" in str(w.message)]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.usefixtures("no_kernels")
def test_one_warning_a_process_with_reason_and_cure(compiled: bool) -> None:
    (text,) = told("auto", compiled=compiled)
    assert "no compiler; get one" in text
    assert "two to three times as long" in text
    assert told("auto") == []


@pytest.mark.usefixtures("no_kernels")
def test_who_asks_for_the_reference_is_not_warned() -> None:
    assert told("reference") == []


@pytest.mark.parametrize(
    ("triton", "numpy", "runs"),
    [("3.6.0", "2.4.6", True), ("3.6.0", "2.5.0rc1", False), ("3.9.0", "2.5.2", True)],
)
def test_an_interpreter_that_numpy_is_too_new_for_is_no_backend(triton, numpy, runs, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("importlib.metadata.version", {"triton": triton, "numpy": numpy}.get)
    obstacle = extension._interpreter_obstacle()
    assert (obstacle is None) == runs
    assert runs or obstacle == (
        "the interpreter of Triton 3.6.0 needs NumPy before 2.5, this is 2.5.0rc1"
    )


def test_a_limit_of_the_kernels_is_no_fault_of_the_installation(monkeypatch) -> None:
    monkeypatch.setattr(library, "_told", [])
    monkeypatch.setitem(library.obstacles["slot_attention"]["native"], "cpu", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limits = {"native": "too many slots"}
        assert library.resolve("slot_attention", "auto", Q, limits) == "reference"


@pytest.mark.usefixtures("no_kernels")
def test_benchmarks_refuse_to_time_the_reference_unless_asked() -> None:
    with pytest.raises(ValueError, match="; to time plain PyTorch instead: --allow"):
        kernels.require(allowed=False, device="cpu")
    kernels.require(allowed=True, device="cpu")


def test_an_operator_of_the_cpu_alone_is_missing_on_no_gpu(monkeypatch) -> None:
    """Its reference there is no fault of the installation, and nobody looks for its kernels."""
    monkeypatch.setattr(library, "_told", [])
    for reasons in library.obstacles.values():
        for device in reasons["native"]:
            monkeypatch.setitem(reasons["native"], device, None)  # as after a build with CUDA
    assert "slot_iterations" in library.backends("cpu")
    assert not [op for op, found in library.backends("cuda").items() if found["native"]]
    assert library.backends("cuda").keys() == {*library.obstacles} - {"slot_iterations"}
    kernels.require(allowed=False, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = [torch.empty(1, device="meta")]
        assert library.resolve("slot_iterations", "auto", x) == "reference"
