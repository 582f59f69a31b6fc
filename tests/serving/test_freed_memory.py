"""When the heap is trimmed: after growth, once, and never for what is in use."""

from __future__ import annotations

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


def test_memory_in_use_is_trimmed_only_once() -> None:
    process = Process()
    memory = FreedMemory(process.resident, process.trim)
    process.used_mib = 500
    assert [memory.trim_if_grown() for _ in range(3)] == [True, False, False]
    process.used_mib = 100
    assert not memory.trim_if_grown()
    process.kept_mib = 40
    assert memory.trim_if_grown()


def test_this_process_is_measured() -> None:
    before = resident_bytes()
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    assert resident_bytes() >= before + 32 * MIB
