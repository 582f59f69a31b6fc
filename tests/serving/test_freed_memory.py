"""When the heap is trimmed: after growth, once, and never for what is in use."""

from __future__ import annotations

import mmap

from hypothesis import given
from hypothesis import strategies as st

from foldserve.serving.freed_memory import FreedMemory, resident_bytes

MIB = 1024 * 1024


class Process:
    """Memory in use, and memory that was freed and is kept."""

    def __init__(self) -> None:
        self.used_mib, self.kept_mib = 100, 0

    def resident(self) -> int:
        return (self.used_mib + self.kept_mib) * MIB

    def trim(self) -> None:
        self.kept_mib = 0


@given(freed_mib=st.lists(st.integers(0, 300), max_size=30))
def test_no_more_than_the_least_growth_is_kept(freed_mib: list[int]) -> None:
    process = Process()
    memory = FreedMemory(process.resident, process.trim)
    for freed in freed_mib:
        process.kept_mib += freed
        memory.trim_if_grown()
        assert process.kept_mib < 32


def test_what_is_in_use_is_trimmed_ever_less_often() -> None:
    process = Process()
    memory = FreedMemory(process.resident, process.trim)
    process.used_mib = 500
    trimmed = [memory.trim_if_grown() for _ in range(200)]
    assert trimmed[:2] == [True, True]
    assert sum(trimmed[2:]) < 10
    process.used_mib, process.kept_mib = 500, 40
    assert memory.trim_if_grown(), "it has grown"


def test_what_is_freed_later_is_given_back_too() -> None:
    """Memory in use at the first look is free at the second, and the process is as large as before."""
    process = Process()
    memory = FreedMemory(process.resident, process.trim)
    process.used_mib = 200
    memory.trim_if_grown()
    process.used_mib, process.kept_mib = 100, 100
    memory.trim_if_grown()
    assert process.kept_mib == 0


def test_this_process_is_measured() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 64 * MIB) as block:  # not from the heap, which may have room
        block.write(b"x" * len(block))
        after = resident_bytes()
    assert after >= before + 32 * MIB
