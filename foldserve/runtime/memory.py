"""Finds the memory that this process may use, by the machine's size and cgroup limits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from foldserve.runtime.cpus import CGROUP_ROOT, PROCESS_CGROUPS, cgroup_folders

if TYPE_CHECKING:
    from pathlib import Path


def usable_memory_bytes(cgroup_root: Path = CGROUP_ROOT, own_cgroups: Path = PROCESS_CGROUPS) -> int:
    """Return the smallest of the machine's memory and the limits of all cgroups (v2 and v1), in bytes."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in cgroup_folders(cgroup_root, own_cgroups, "memory"):
        for name in (
            "memory.max",
            "memory.limit_in_bytes",
        ):  # v2: "max" or bytes; v1: bytes, no limit is huge
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):
                continue
    return min(limits)
