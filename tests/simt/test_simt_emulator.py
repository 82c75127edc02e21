"""What the emulator of CUDA threads promises, shown on small kernels, right and wrong ones."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import simt_build
from simt_build import DEVICE, HERE, ROOT, Simulator
from simt_plugin import ORDERS

OBSTACLE = simt_build.obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))
THREADS = 64
KIB = 1024
Run = Callable[..., list[float]]


@pytest.fixture(scope="session")
def kernels() -> ctypes.CDLL:
    builder, target = Simulator(ROOT / "build/simt"), ROOT / "build/simt/kernels.so"
    builder.link(builder.compile([HERE / "kernels.cu", DEVICE]), target)
    library = ctypes.CDLL(str(target))
    library.run_case.restype = ctypes.c_char_p
    return library


@pytest.fixture
def run(kernels: ctypes.CDLL) -> Run:
    """Runs a kernel; the numbers after its THREADS results are `given` to it."""

    def run_case(name: str, order: str = "forward", given: float = 0) -> list[float]:
        kernels.simt_configure(ORDERS.index(order), 1, 132)
        numbers = (ctypes.c_double * (2 * THREADS))(*[given] * (2 * THREADS))
        if error := kernels.run_case(name.encode(), numbers):
            raise RuntimeError(error.decode())
        return numbers[:THREADS]

    return run_case


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_makes_results_independent_of_the_order(run: Run, order: str) -> None:
    assert run("reverse", order) == list(reversed(range(THREADS)))


def test_without_it_they_depend_on_the_order(run: Run) -> None:
    found = {order: run("reverse without a barrier", order) for order in ORDERS}
    expected = list(reversed(range(THREADS)))
    for order in ORDERS:
        assert found[order] != expected
        assert any(map(math.isnan, found[order]))
    assert [math.isnan(x) for x in found["forward"]] != [math.isnan(x) for x in found["backward"]]


def test_random_order_repeats_with_its_seed(run: Run) -> None:
    first, second = (str(run("reverse without a barrier", "random")) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "different barriers",
            r"__syncthreads\(\) that thread 1,0,0 does not reach: it waits at kernels.cu:\d+ "
            r"\(kernels.cu:\d+, block 0,0,0, thread 0,0,0\)",
        ),
        ("barrier after return", r"__syncthreads\(\) that thread 3,0,0 never reaches: it has ret"),
        ("barrier against shuffle", "a full mask, with a thread that thread 0,0,0 does not reach"),
        ("shuffle of half a warp", "a full mask, with a thread that thread 16,0,0 never reaches"),
        ("shuffle with a partial mask", "a shuffle with a partial mask"),
        ("shuffle in a warp of 31 threads", "a full mask in a warp of fewer threads"),
        ("end before a copy", "a thread ends before its copies are awaited"),
        ("end before a copy that is not committed", "a thread ends before its copies are awaited"),
        ("misaligned copy", r"__pipeline_memcpy_async\(\) between addresses"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_what_hangs_or_is_undefined_on_a_gpu_raises(
    run: Run, name: str, message: str, order: str
) -> None:
    with pytest.raises(RuntimeError, match=f"simt: {message}" if order == "forward" else "simt: "):
        run(name, order)
    assert run("reverse") == list(reversed(range(THREADS)))  # the next launch is not disturbed


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(run: Run, order: str) -> None:
    for thread, value in enumerate(run("shuffles", order)):
        first = thread // 32 * 32
        following = thread if thread % 32 == 31 else thread + 1
        expected = sum(range(first, first + 32)) + 1000 * following + 100000 * (first + 3)
        assert value == expected


@pytest.mark.parametrize("order", ORDERS)
def test_shared_memory_is_nan_before_each_block(run: Run, order: str) -> None:
    assert all(map(math.isnan, run("unwritten", order)))


def test_static_shared_memory_is_nan_in_the_first_block_of_an_os_thread(run: Run) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert all(map(math.isnan, pool.submit(run, "unwritten static").result()))


@pytest.mark.parametrize(
    ("order", "expected"),
    [("forward", [0, 1, 10, 11, 20, 21]), ("backward", [21, 20, 11, 10, 1, 0])],
)
def test_blocks_run_in_order(run: Run, order: str, expected: list[float]) -> None:
    assert run("blocks in turn", order)[:6] == expected


def test_blocks_run_in_random_order(run: Run) -> None:
    found = run("blocks in turn", "random")[:6]
    assert sorted(found) == [0, 1, 10, 11, 20, 21]
    assert found != sorted(found)


def test_a_copy_is_there_when_its_wait_is_over(run: Run) -> None:
    assert run("copies", given=3) == [6] * THREADS


@pytest.mark.parametrize("name", ["copies of which one is awaited", "copies without a wait"])
def test_a_copy_that_is_not_awaited_is_nan(run: Run, name: str) -> None:
    assert all(map(math.isnan, run(name, given=3)))


@pytest.mark.parametrize("name", ["1024 threads", "all shared memory"])
def test_launches_that_a_gpu_takes(run: Run, name: str) -> None:
    run(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("1025 threads", "invalid configuration argument"),
        ("no block", "invalid configuration argument"),
        ("65536 blocks along y", "invalid configuration argument"),
        ("more shared memory", "invalid argument"),
    ],
)
def test_launches_that_a_gpu_refuses(
    run: Run, kernels: ctypes.CDLL, name: str, message: str
) -> None:
    with pytest.raises(RuntimeError, match=f"{name}: CUDA: {message}"):
        run(name)
    assert kernels.cudaGetLastError() == 0  # `launch` has cleared it


def test_more_than_48_kib_must_be_asked_for(kernels: ctypes.CDLL) -> None:
    assert kernels.launch_without_asking(ctypes.c_int64(48 * KIB)) == 0
    assert kernels.launch_without_asking(ctypes.c_int64(48 * KIB + 1)) != 0


def test_threads_have_three_indices(kernels: ctypes.CDLL) -> None:
    numbers = (ctypes.c_double * 24)()
    kernels.run_indices(numbers)
    expected = [100 * z + 10 * y + x for z in range(2) for y in range(3) for x in range(4)]
    assert list(numbers) == expected


@pytest.mark.parametrize(
    ("threads", "kib", "blocks"), [(128, 0, 2), (32, 0, 8), (32, 63, 3), (32, 227, 1), (1024, 0, 1)]
)
def test_blocks_that_fit_a_multiprocessor(
    kernels: ctypes.CDLL, threads: int, kib: int, blocks: int
) -> None:
    assert kernels.blocks_that_fit(threads, ctypes.c_int64(kib * KIB)) == blocks


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert simt_build.obstacle() == "g++ is not on the PATH"
