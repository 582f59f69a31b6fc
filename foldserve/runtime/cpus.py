"""Counts the CPUs that this process may use, by affinity and cgroup quota.

A cgroup's quota limits all groups below it, so the process's own group and all above it are read, and the
lowest quota counts. Inside a container the kernel may report the host's path, which the container cannot see:
then the root of the mount is the container's own group.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROCESS_CGROUPS = Path("/proc/self/cgroup")


class Cpus(NamedTuple):
    """Holds a process's CPU limits: CPUs by affinity, and by cgroup quota (None without one)."""

    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Whole CPUs, at least 1. A quota is rounded up: 1.5 CPUs keep two threads busy most of the time."""
        return max(1, self.affinity if self.quota is None else min(self.affinity, math.ceil(self.quota)))

    def __str__(self) -> str:
        quota = "no cgroup quota" if self.quota is None else f"{self.quota:g} by cgroup quota"
        return f"{self.usable} usable ({self.affinity} by affinity, {quota})"


def usable_cpus(cgroup_root: Path = CGROUP_ROOT, own_cgroups: Path = PROCESS_CGROUPS) -> int:
    """Return how many CPUs affinity and the cgroup quota (v2 and v1) allow, at least 1."""
    return find_cpus(cgroup_root, own_cgroups).usable


def find_cpus(cgroup_root: Path = CGROUP_ROOT, own_cgroups: Path = PROCESS_CGROUPS) -> Cpus:
    """Return this process's CPU limits."""
    if hasattr(os, "sched_getaffinity"):  # noqa: SIM108  # each branch on a line of its own
        affinity = len(os.sched_getaffinity(0))
    else:  # pragma: no cover  # not Linux
        affinity = os.cpu_count() or 1
    quotas = [quota for folder in cgroup_folders(cgroup_root, own_cgroups) for quota in _quotas(folder)]
    return Cpus(affinity, min(quotas, default=None))


def cgroup_folders(root: Path, own_cgroups: Path, controller: str = "cpu") -> Iterator[Path]:
    """Yield the folders of this process's cgroups and all above them, in each hierarchy of a controller."""
    try:
        lines = own_cgroups.read_text().splitlines()
    except OSError:
        lines = []
    # "0::/user.slice" is version 2's; "4:cpu,cpuacct:/docker/1f" one of version 1's.
    mounts = {root: "/", root / controller: "/"}
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts |= {root: path, root / "unified": path}
        elif controller in controllers.split(","):
            mounts |= {root / controller: path, root / controllers: path}
    for mount, path in mounts.items():
        own = Path(path.lstrip("/"))
        if ".." in own.parts:  # outside this process's view: the kernel writes "/../other"
            own = Path()
        yield from (mount / above for above in (own, *own.parents))


def _quotas(folder: Path) -> Iterator[float]:
    """Yield the quotas set in a cgroup's folder, in CPUs."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()  # v2: "max 100000" or "150000 100000"
        if quota != "max" and int(period) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())  # v1: -1 is no limit
        period_us = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return
    if quota_us > 0 and period_us > 0:
        yield quota_us / period_us
