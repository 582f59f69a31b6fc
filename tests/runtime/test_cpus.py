"""Tests counting CPUs by affinity and quota, in both layouts of the cgroup file system."""

import math
import os
from pathlib import Path

import pytest

from foldserve.runtime import cpus
from foldserve.runtime.cpus import find_cpus, usable_cpus


@pytest.fixture(autouse=True)
def eight_by_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def v2(root: Path, text: str) -> Path:
    (root / "cpu.max").write_text(text)
    return root


def v1(root: Path, quota_us: str, period_us: str = "100000\n") -> Path:
    (root / "cpu").mkdir()
    (root / "cpu" / "cpu.cfs_quota_us").write_text(quota_us)
    (root / "cpu" / "cpu.cfs_period_us").write_text(period_us)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("200000 100000\n", 2, id="two CPUs"),
        pytest.param("150000 100000\n", 2, id="one and a half are two threads"),
        pytest.param("10000 100000\n", 1, id="a tenth is still one"),
        pytest.param("1600000 100000\n", 8, id="more than affinity"),
        pytest.param("max 100000\n", 8, id="no limit"),
        pytest.param("nonsense", 8, id="malformed"),
    ],
)
def test_quota_of_cgroup_v2(tmp_path, text, expected):
    assert usable_cpus(v2(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("quota_us", "expected"),
    [
        pytest.param("300000\n", 3, id="three"),
        pytest.param("-1\n", 8, id="no limit"),
        pytest.param("", 8, id="empty"),
    ],
)
def test_quota_of_cgroup_v1(tmp_path, quota_us, expected):
    assert usable_cpus(v1(tmp_path, quota_us)) == expected


def nested(tmp_path: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Make a cgroup mount with ``files``, and a /proc/self/cgroup."""
    for name, text in files.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(text)
    (tmp_path / "cgroup").write_text(lines)
    return tmp_path / "mount", tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "300000 100000"}, 3, id="v2, own group"),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"},
            2,
            id="v2, a group above binds too",
        ),
        pytest.param(
            "0::/a/b\n",
            {"a/b/cpu.max": "100000 100000", "a/cpu.max": "400000 100000", "cpu.max": "600000 100000"},
            1,
            id="v2, the least counts",
        ),
        pytest.param("0::/a\n", {"b/cpu.max": "100000 100000"}, 8, id="v2, a sibling's does not"),
        pytest.param(
            "0::/docker/1f\n", {"cpu.max": "500000 100000"}, 5, id="v2, a path that only the host sees"
        ),
        pytest.param("0::/../other\n", {"cpu.max": "500000 100000"}, 5, id="v2, a path outside the view"),
        pytest.param(
            "4:cpu,cpuacct:/job/7\n3:memory:/job\n",
            {
                "cpu,cpuacct/job/7/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/job/7/cpu.cfs_period_us": "100000",
                "cpu,cpuacct/job/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "50000",
            },
            3,
            id="v1, a group above",
        ),
        pytest.param(
            "4:cpu:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "400000", "cpu/job/cpu.cfs_period_us": "100000"},
            4,
            id="v1 beside v2",
        ),
        pytest.param("0::/\n", {"unified/cpu.max": "700000 100000"}, 7, id="v2 mounted beside v1"),
        pytest.param("0::/a\n", {"a/cpu.max": "100000 0"}, 8, id="a period of none"),
    ],
)
def test_quota_of_a_nested_group(tmp_path, lines, files, expected):
    assert usable_cpus(*nested(tmp_path, lines, files)) == expected


def test_cpu_limits_are_described(tmp_path):
    found = find_cpus(*nested(tmp_path, "0::/a\n", {"a/cpu.max": "150000 100000"}))
    assert str(found) == "2 usable (8 by affinity, 1.5 by cgroup quota)"


def test_affinity_applies_without_a_cgroup(tmp_path):
    assert usable_cpus(tmp_path, tmp_path / "none") == 8


def test_smaller_affinity_applies(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert usable_cpus(v2(tmp_path, "400000 100000\n")) == 1


def test_this_process_has_a_sane_count():
    assert 1 <= usable_cpus(cpus.CGROUP_ROOT) <= max(8, math.ceil(os.cpu_count() or 1))
