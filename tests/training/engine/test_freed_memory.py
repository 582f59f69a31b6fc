"""Memory that a step frees is kept for the next step, as page faults tell."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from foldserve.c_allocator import keep_freed_memory
from foldserve.demo.children import ending_with_us

# In a process of its own: what ran before in this one decides where its memory comes from.
_SCRIPT = """
import resource
import torch
from pathlib import Path
from foldserve.training.config import TrainConfig
from foldserve.training.engine.device import prepare_device

def page_faults():
    # The fewest of ten times that 32 MiB are filled and freed.
    counts = []
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(8 * 1024 * 1024, dtype=torch.float32).fill_(1.0)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)

before = page_faults()
prepare_device(TrainConfig(device="cpu", run_dir=Path("run")))
print(before, page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_a_run_on_the_cpu_fills_the_memory_that_it_freed():
    command = ending_with_us([sys.executable, "-c", _SCRIPT])
    before, after = map(int, subprocess.check_output(command, text=True).split())
    assert before > 8, "the twin: memory is given back, and got again in pages of up to 2 MiB"
    assert after == 0


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory(block_bytes=2**20, kept_bytes=2**20)
