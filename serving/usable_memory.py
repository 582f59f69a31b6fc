"""How much memory this process may really use: the machine's, and the limits of its cgroup and all above."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from serving.processors import CGROUP_ROOT, OWN_CGROUPS, own_folders

if TYPE_CHECKING:
    from pathlib import Path


def usable_memory_bytes(cgroup_root: Path = CGROUP_ROOT, own_cgroups: Path = OWN_CGROUPS) -> int:
    """Return the least of the machine's memory and the limits of the cgroups (v2 and v1)."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in own_folders(cgroup_root, own_cgroups, "memory"):
        for name in (
            "memory.max",
            "memory.limit_in_bytes",
        ):  # v2: "max" or bytes; v1: bytes, no limit is huge
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):
                continue
    return min(limits)
