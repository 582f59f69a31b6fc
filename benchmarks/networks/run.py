"""Runs what `benchmarks.networks` asks for; started by it in the environment `.venv-networks`."""

from __future__ import annotations

import argparse
import fnmatch
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.networks import onnx_files
from benchmarks.networks.attempt import attempt, attempt_by_pytorch
from benchmarks.networks.environment import ROOT
from benchmarks.networks.exported import export_by_pytorch
from benchmarks.networks.flags import add_flags
from benchmarks.networks.names import read_names
from benchmarks.networks.onnx_files import attempt_file
from benchmarks.networks.packages import build
from benchmarks.networks.processes import Limits, run_jobs
from benchmarks.networks.results import append_result, read_results, still_to_do
from benchmarks.networks.statistics import STATISTICS
from benchmarks.networks.table import one_line
from foldserve.demo.children import ending_with_us

if TYPE_CHECKING:
    from benchmarks.networks.packages import Network
    from benchmarks.networks.processes import Job
    from benchmarks.networks.results import Key, Row

_CLOCK_FACTOR = 10  # by the clock, of the limit on seconds of the processor: on a busy machine others run too
_SMALLEST = {"torchvision": "squeezenet1_1", "timm": "test_resnet"}


def main() -> int:
    """Run what is still to do, and append a row for each network; return 0."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    args = parser.parse_args()
    commit = current_commit()
    jobs = all_jobs()
    wanted = sorted((key for key in jobs if _is_wanted(key, args)), key=lambda key: _turn(key[0], args.only))
    done = {
        key: row for key, row in read_results(args.results).items() if row["side"] == _side(jobs.get(key))
    }
    if args.only_pytorch:
        keys = [key for key in wanted if jobs[key] and key in done and "pytorch" not in done[key]]
    else:
        keys = still_to_do(
            wanted,
            done,
            again=args.again,
            failed=args.failed,
            other_commit=commit if args.stale else None,
        )
    print(f"{len(keys)} of {len(wanted)} to do, at commit {commit}", flush=True)
    if not keys:
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that files are removed
    _load()
    started_s = time.monotonic()
    limits = Limits(args.limit_s, args.limit_mib, args.limit_s * _CLOCK_FACTOR)
    rows = run_jobs(
        (_job(key, jobs[key], commit, done.get(key, {}), args) for key in keys), limits, args.jobs
    )
    for number, row in enumerate(rows, 1):
        append_result(args.results, row)
        print(f"[{number}/{len(keys)} {time.monotonic() - started_s:.0f} s] {one_line(row)}", flush=True)
    return 0


def _load() -> None:
    """Load before the forks what takes longer to load than a small network to export."""
    for package, name in _SMALLEST.items():
        build(package, name)
    with tempfile.TemporaryDirectory() as folder:  # PyTorch's exporter loads most of itself when it runs
        images = np.zeros((1, 3, 4, 4), np.uint8)
        export_by_pytorch(torch.nn.Conv2d(3, 1, 1).eval(), images, Path(folder) / "tiny.onnx")


def all_jobs() -> dict[Key, Network | None]:
    """Return every network with every kind of statistics; None stands for a file of the `onnx` wheel."""
    files: dict[Key, Network | None] = {
        (name, statistics): None for statistics in onnx_files.STATISTICS for name in onnx_files.names()
    }
    networks = {(each.key, statistics): each for statistics in STATISTICS for each in read_names()}
    return networks | files


def current_commit() -> str:
    """Return the commit that is measured, with a "+" if tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(ending_with_us(command), capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip() or "unknown"


def _side(network: Network | None) -> int:
    return onnx_files.SIDE if network is None else network.side


def _is_wanted(key: Key, args: argparse.Namespace) -> bool:
    network, statistics = key
    package = network.partition("/")[0]
    asked = not args.only or any(fnmatch.fnmatchcase(network, pattern) for pattern in args.only)
    return package in args.packages and statistics in args.statistics and asked


def _turn(network: str, patterns: list[str]) -> int:
    """Return the place of the first of ``patterns`` that matches, as networks run in the order asked for."""
    return next((turn for turn, pattern in enumerate(patterns) if fnmatch.fnmatchcase(network, pattern)), 0)


def _job(
    key: Key, network: Network | None, commit: str, before: Row, args: argparse.Namespace
) -> tuple[Row, Job]:
    """Return what is known of a network beforehand, and its job.

    What PyTorch's exporter made of it ``before`` is kept: it does not depend on foldserve.
    """
    name, statistics = key
    row: Row = {"network": name, "statistics": statistics, "commit": commit}
    if network is None:
        return row | {"package": "onnx", "side": _side(network)}, partial(attempt_file, name, statistics)
    if args.only_pytorch:
        return before, partial(attempt_by_pytorch, network, statistics)
    row |= {"package": network.package, "side": _side(network)}
    if "pytorch" in before and not args.pytorch_again:
        row["pytorch"] = before["pytorch"]
    pytorch = args.pytorch and "pytorch" not in row
    return row, partial(attempt, network, statistics, pytorch=pytorch)


if __name__ == "__main__":
    sys.exit(main())
