"""Keeping the heap: fewer page faults, and a way out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from emorl.memory import keep_heap
done = keep_heap()
for _ in range(10):
    torch.ones(2**21)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**21)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(setting: str) -> tuple[str, int]:
    environment = {**os.environ, "EMORL_KEEP_HEAP": setting, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    done, faults = output.stdout.split()
    return done, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_large_tensors_reuse_their_pages() -> None:
    done, faults = run("1")
    assert done == "True"
    assert faults < 100  # of 40,960 pages written
    assert run("0")[0] == "False"
