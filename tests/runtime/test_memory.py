"""Tests the usable memory: the smallest of the machine's and the cgroups' limits, in both layouts."""

from pathlib import Path

import pytest

from foldserve.runtime.memory import usable_memory_bytes

GIB = 2**30


def limited(root: Path, name: str, text: str) -> int:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return usable_memory_bytes(root, root / "no such file")


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_cgroup_memory_limit_applies(tmp_path: Path, name: str) -> None:
    assert limited(tmp_path, name, f"{GIB // 8}\n") == GIB // 8


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("memory.max", "max\n", id="none"),
        pytest.param("memory.max", "nonsense", id="malformed"),
        pytest.param("memory/memory.limit_in_bytes", "9223372036854771712\n", id="none in version 1"),
        pytest.param("other", "1", id="no cgroup"),
    ],
)
def test_memory_never_exceeds_the_machines(tmp_path: Path, name: str, text: str) -> None:
    everything = usable_memory_bytes(tmp_path / "nowhere", tmp_path / "nowhere")
    assert everything >= GIB // 4
    assert limited(tmp_path, name, text) == everything


def test_memory_limit_of_a_parent_cgroup_applies(tmp_path: Path) -> None:
    own = tmp_path / "slice" / "unit"
    own.mkdir(parents=True)
    (own / "memory.max").write_text("max\n")
    (tmp_path / "slice" / "memory.max").write_text(f"{GIB // 4}\n")
    (tmp_path / "cgroups").write_text("0::/slice/unit\n")
    assert usable_memory_bytes(tmp_path, tmp_path / "cgroups") == GIB // 4
