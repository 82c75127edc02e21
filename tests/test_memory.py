"""Keeping memory: fewer page faults, no more than was needed at once, and a way out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from emorl.ops.extension import extension

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux's memory is kept"
)
needs_extension = pytest.mark.skipif(
    extension() is None, reason="the native extension is not built"
)

START = """
import os, resource, sys, threading
from pathlib import Path
import torch
from emorl.memory import keep_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

before = torch.ones(2**20)
done = keep_memory()
"""


def run(program: str, setting: str = "1") -> list[str]:
    """What a fresh process prints: an allocator stays for good."""
    environment = {**os.environ, "EMORL_KEEP_MEMORY": setting, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START + program]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return output.stdout.split()


def test_large_tensors_reuse_their_pages() -> None:
    program = """
for _ in range(10):
    torch.ones(2**21)
before = faults()
for _ in range(20):
    torch.ones(2**21)
print(done, faults() - before)
"""
    done, new = run(program)
    assert done == "True"
    assert int(new) < 100  # of 40,960 pages written
    assert run(program, "0")[0] == "False"


@needs_extension
def test_no_more_memory_is_kept_than_was_needed_at_once() -> None:
    """Blocks of each size fit in none of the other sizes: a heap would keep several sets."""
    program = """
def fill(size):
    return [torch.ones(size << 18) for _ in range(96 // size)]  # 96 MiB in all

torch.ones(2**10).add_(1)
start = memory("VmRSS")
for size in (3, 40, 5, 24, 9, 15, 2) * 2:
    fill(size)
print(memory("VmHWM") - start)
"""
    assert float(run(program)[0]) < 96 * 1.08


@needs_extension
def test_kept_blocks_serve_similar_sizes_and_hold_what_is_written() -> None:
    program = """
a = torch.full((1000, 1024), 3.0)
place = a.data_ptr()
del a
b = torch.full((900, 1024), 4.0)  # 12 % of the block stay unused
c = torch.full((900, 1024), 5.0)
print(b.data_ptr() == place, b.data_ptr() % 64, (b == 4).all().item(), (c == 5).all().item())
c.resize_(2000, 1024)
print((c[:900] == 5).all().item(), torch.from_numpy(c.numpy()).data_ptr() == c.data_ptr())
del c
d = torch.ones(300, 1024)
print(d.data_ptr() == place)
"""
    assert run(program) == ["True", "0", "True", "True", "True", "True", "False"]


@needs_extension
def test_tensors_from_before_other_threads_and_forked_processes() -> None:
    program = """
def work():
    for size in range(1, 40):
        x = torch.full((size, 2**16), float(size))
        assert (x == size).all()

before.add_(1)
print(before.sum().item())
del before
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        torch.ones(2**20)
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
for thread in threads:
    thread.join()
print("whole")
"""
    assert run(program) == ["2097152.0", *["7"] * 5, "whole"]


@needs_extension
def test_the_profiler_sees_kept_blocks() -> None:
    program = """
torch.ones(2**20)
with torch.profiler.profile(profile_memory=True) as record:
    torch.ones(2**20)
print(max(e.self_cpu_memory_usage for e in record.events()))
"""
    assert int(run(program)[0]) >= 4 << 20
