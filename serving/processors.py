"""How many processors this process may really use: affinity and the cgroup's quota, not the host's count."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_processors(cgroup_root: Path = _CGROUP_ROOT) -> int:
    """Return the number of processors that affinity and the cgroup quota (v2, then v1) leave, at least 1.

    A fractional quota is rounded up: 1.5 processors keep two threads busy most of the time.
    """
    if hasattr(os, "sched_getaffinity"):  # noqa: SIM108  # each branch on a line of its own
        count = len(os.sched_getaffinity(0))
    else:  # pragma: no cover  # not Linux
        count = os.cpu_count() or 1
    quota = _cgroup_quota(cgroup_root)
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """Return the quota in processors; None where there is no limit or no cgroup."""
    try:
        quota, period = (root / "cpu.max").read_text().split()  # v2: "max 100000" or "150000 100000"
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())  # v1: -1 is no limit
        period_us = int((root / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None
