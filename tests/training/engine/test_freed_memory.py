"""Memory that a step frees is kept for the next step, as page faults tell."""

from __future__ import annotations

import platform
import resource
from typing import TYPE_CHECKING

import pytest
import torch

from foldserve.training.config import TrainConfig
from foldserve.training.engine.device import prepare_device
from foldserve.training.engine.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# As glibc begins: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
_SMALL = {-3: 128 * 1024, -1: 128 * 1024}
_VALUES = 8 * 1024 * 1024
_IS_GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    """Start from memory that is given back, whatever ran before in this process."""
    if _IS_GLIBC:
        assert keep_freed_memory(_SMALL)
    yield
    keep_freed_memory()


def page_faults() -> int:
    """Return the fewest page faults of a process that fills 32 MiB and frees them, of ten times."""
    counts = []
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(_VALUES, dtype=torch.float32).fill_(1.0)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)


@pytest.mark.skipif(not _IS_GLIBC, reason="only glibc can be told to keep memory")
def test_a_run_on_the_cpu_fills_the_memory_that_it_freed(tmp_path: Path):
    assert page_faults() > 8, "the twin: memory is given back, and got again in pages of up to 2 MiB"
    prepare_device(TrainConfig(device="cpu", run_dir=tmp_path))
    assert page_faults() == 0


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()
