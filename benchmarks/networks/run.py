"""Runs what `benchmarks.networks` asks for; started by it in the environment `.venv-networks`."""

from __future__ import annotations

import argparse
import fnmatch
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

# Loaded before the forks, so that no attempt pays for it.
import onnxscript  # noqa: F401
import torch.onnx
import torch.onnx._internal.exporter._core  # noqa: F401

from benchmarks.networks import attempt, onnx_files
from benchmarks.networks.environment import ROOT
from benchmarks.networks.flags import add_flags
from benchmarks.networks.names import read_names
from benchmarks.networks.packages import build
from benchmarks.networks.processes import Limits, run_jobs
from benchmarks.networks.results import append_result, read_results, still_to_do
from benchmarks.networks.statistics import STATISTICS
from benchmarks.networks.table import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.networks.processes import Job
    from benchmarks.networks.results import Key, Row

_SMALLEST = {"torchvision": "squeezenet1_1", "timm": "test_resnet"}


def main() -> int:
    """Run what is still to do, and append a row for each network; return 0."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    args = parser.parse_args()
    commit = current_commit()
    jobs = all_jobs(pytorch=args.pytorch)
    wanted = [key for key in jobs if _is_wanted(key, args)]
    keys = still_to_do(
        wanted,
        read_results(args.results),
        again=args.again,
        failed=args.failed,
        other_commit=commit if args.stale else None,
    )
    print(f"{len(keys)} of {len(wanted)} to do, at commit {commit}", flush=True)
    if not keys:
        return 0
    for package, name in _SMALLEST.items():
        build(package, name)  # loads the package
    started_s = time.monotonic()
    limits = Limits(args.limit_s, args.limit_mib)
    rows = run_jobs((_job(key, *jobs[key], commit) for key in keys), limits, args.jobs)
    for number, row in enumerate(rows, 1):
        append_result(args.results, row)
        print(f"[{number}/{len(keys)} {time.monotonic() - started_s:.0f} s] {one_line(row)}", flush=True)
    return 0


def all_jobs(*, pytorch: bool) -> dict[Key, tuple[Row, Job]]:
    """Return every network with every kind of statistics: what is known of it beforehand, and its job."""
    jobs: dict[Key, tuple[Row, Job]] = {}
    for statistics in STATISTICS:
        for network in read_names():
            job = partial(_attempt, network, statistics, pytorch)
            jobs[network.key, statistics] = ({"package": network.package, "side": network.side}, job)
    for statistics in onnx_files.STATISTICS:
        for name in onnx_files.names():
            job = partial(_attempt_file, name, statistics)
            jobs[name, statistics] = ({"package": "onnx", "side": onnx_files.SIDE}, job)
    return jobs


def current_commit() -> str:
    """Return the commit that is measured, with a "+" if tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip() or "unknown"


def _is_wanted(key: Key, args: argparse.Namespace) -> bool:
    network, statistics = key
    package = network.partition("/")[0]
    return package in args.packages and statistics in args.statistics and _matches(network, args.only)


def _matches(network: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(network, pattern) for pattern in patterns)


def _job(key: Key, known: Row, job: Job, commit: str) -> tuple[Row, Job]:
    network, statistics = key
    return {"network": network, "statistics": statistics, "commit": commit} | known, job


def _attempt(network: Any, statistics: str, pytorch: bool, folder: Path, tell: Any) -> None:
    attempt.attempt(network, statistics, folder, tell, pytorch=pytorch)


def _attempt_file(name: str, statistics: str, folder: Path, tell: Any) -> None:
    onnx_files.attempt_file(name, statistics, folder, tell)


if __name__ == "__main__":
    sys.exit(main())
