"""Counting processors: affinity and quota, in both layouts of the cgroup file system."""

import math
import os
from pathlib import Path

import pytest

from serving import processors
from serving.processors import usable_processors


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
        pytest.param("200000 100000\n", 2, id="two processors"),
        pytest.param("150000 100000\n", 2, id="one and a half are two threads"),
        pytest.param("10000 100000\n", 1, id="a tenth is still one"),
        pytest.param("1600000 100000\n", 8, id="more than affinity"),
        pytest.param("max 100000\n", 8, id="no limit"),
        pytest.param("nonsense", 8, id="malformed"),
    ],
)
def test_quota_of_cgroup_v2(tmp_path, text, expected):
    assert usable_processors(v2(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("quota_us", "expected"),
    [
        pytest.param("300000\n", 3, id="three"),
        pytest.param("-1\n", 8, id="no limit"),
        pytest.param("", 8, id="empty"),
    ],
)
def test_quota_of_cgroup_v1(tmp_path, quota_us, expected):
    assert usable_processors(v1(tmp_path, quota_us)) == expected


def test_without_cgroup_affinity_counts(tmp_path):
    assert usable_processors(tmp_path) == 8


def test_affinity_counts_where_it_is_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert usable_processors(v2(tmp_path, "400000 100000\n")) == 1


def test_this_process_has_a_sane_count():
    assert 1 <= usable_processors(processors._CGROUP_ROOT) <= max(8, math.ceil(os.cpu_count() or 1))
