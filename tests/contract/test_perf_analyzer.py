"""Triton's own load generator measures the server in each way that it has, and is told what it counts."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.training.datasets.sources import cache_folder
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CACHE = cache_folder("perf-analyzer")  # where `make perf-analyzer` puts it
TIMEOUT_S = 300  # generous: the test machine may be busy


@pytest.fixture(scope="module")
def web_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(repository, tmp_path_factory.mktemp("perf-analyzer"), "--http") as process:
        yield process


def perf_analyzer(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Measure for three windows of 0.3 s, however much they differ."""
    program = shutil.which("perf_analyzer") or (CACHE and shutil.which("perf_analyzer", path=str(CACHE)))
    if program is None:
        pytest.skip(
            f"needs perf_analyzer: neither on the path nor in {CACHE}; `make perf-analyzer` fetches it"
        )
    window = ("--measurement-interval=300", "--max-trials=3", "--stability-percentage=1000000")
    return subprocess.run(
        [program, *arguments, *window],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(CACHE)},
    )


@pytest.mark.interop
@pytest.mark.parametrize(
    "flags",
    [
        ["-i", "grpc"],
        ["-i", "grpc", "-b", "8", "--concurrency-range", "4"],
        ["-i", "grpc", "--async", "--streaming", "--concurrency-range", "4"],
        ["-i", "grpc", "--request-rate-range", "50"],
        ["-i", "http", "-x", "1"],
        ["-i", "http", "--async", "-b", "8", "--concurrency-range", "2"],
    ],
    ids=" ".join,
)
def test_perf_analyzer_measures_the_server(
    web_server: ServerProcess, flags: list[str], tmp_path: Path
) -> None:
    address = web_server.api_address if "http" in flags else web_server.address
    figures = tmp_path / "figures.csv"
    before = answered(web_server)
    ended = perf_analyzer("-m", "tiny", "-u", address, "-f", str(figures), *flags)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (row,) = csv.DictReader(figures.read_text().splitlines())
    assert float(row["Inferences/Second"]) > 0
    # It fills these with what ModelStatistics says.
    assert float(row["Server Queue"]) >= 0
    assert float(row["Server Compute Infer"]) > 0
    assert answered(web_server) > before


def answered(server: ServerProcess) -> int:
    entries = server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny")).model_stats
    return sum(entry.inference_stats.success.count for entry in entries)
