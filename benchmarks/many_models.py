"""`python -m benchmarks.many_models`: cost of serving many models, or many versions of one model.

Measures the time until the server is ready (wall clock and CPU), its threads and memory at that point, and
the CPU share of an idle server, which scans the repository once per second. All models are copies of one
LeNet, so their files are in the page cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from benchmarks.flags import parse_flags
from benchmarks.serving.networks import lenet
from foldserve.demo.children import ending_with_us, environment_without_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

_READY_LIMIT_S = 600.0
_STOP_LIMIT_S = 60.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ManyModelsConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Measure servers of many models and of many versions."""

    models: int = Field(default=1001, ge=1)
    """Models of one version each, of the first server."""
    versions: int = Field(default=200, ge=1)
    """Versions of one model, of the second."""
    idle_s: float = Field(default=10.0, gt=0)
    """Seconds over which the CPU time of an idle server is measured."""
    source: Path = Path(__file__).parents[1]
    """Folder of the foldserve that serves, to compare another checkout."""


@dataclass(frozen=True)
class Figures:
    """What one server took: to be ready, while it was idle, and to stop."""

    ready_s: float
    ready_processor_s: float
    thread_count: int
    resident_mib: float
    idle_share: float  # of one processor
    stop_s: float


def run_bench(config: ManyModelsConfig) -> int:
    """Measure and print the table; return 0."""
    columns = ("repository", "ready after", "of processors", "threads", "resident", "idle", "stopped after")
    table = Table(*columns)
    with tempfile.TemporaryDirectory(prefix="bench-many-") as folder:
        version = lenet(Path(folder), None).model_file.parent
        one_each = [Path(f"model-{index:04}", "1") for index in range(config.models)]
        of_one = [Path("model", str(index + 1)) for index in range(config.versions)]
        for what, places in (("models", one_each), ("versions of one model", of_one)):
            repository = Path(folder) / what
            for place in places:
                shutil.copytree(version, repository / place, copy_function=os.link)
            found = _measure(repository, Path(folder), config)
            table.add_row(
                f"{len(places):,} {what}",
                f"{found.ready_s:.1f} s",
                f"{found.ready_processor_s:.1f} s",
                f"{found.thread_count:,}",
                f"{found.resident_mib:,.0f} MiB",
                f"{found.idle_share:.1%}",
                f"{found.stop_s:.1f} s",
            )
    Console(width=110).print(table)
    return 0


def _measure(repository: Path, folder: Path, config: ManyModelsConfig) -> Figures:
    log = folder / "log"
    command = [sys.executable, "-m", "foldserve", "serve", "--repository", str(repository), "--port", "0"]
    command += ["--device", "cpu", "--no-metrics", "--log-level", "warning"]
    environment = environment_without_settings() | {"PYTHONPATH": str(config.source)}
    started_s = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ending_with_us(command), stdout=stream, stderr=stream, env=environment, cwd=config.source
        )
    try:
        while " ready" not in log.read_text() and time.monotonic() < started_s + _READY_LIMIT_S:
            if process.poll() is not None:
                raise SystemExit(f"the server ended:\n{log.read_text()}")
            time.sleep(0.05)
        ready_s = time.monotonic() - started_s
        ready_processor_s = _processor_s(process.pid)
        time.sleep(2)  # threads that start-up needed have ended
        before_s = _processor_s(process.pid)
        time.sleep(config.idle_s)
        idle_share = (_processor_s(process.pid) - before_s) / config.idle_s
        status = dict(_status(process.pid))
        stopping_s = time.monotonic()
        process.terminate()
        process.wait(_STOP_LIMIT_S)
        stop_s = time.monotonic() - stopping_s
    finally:
        process.kill()
        process.wait()
    resident_mib = int(status["VmRSS"]) / 1024
    return Figures(ready_s, ready_processor_s, int(status["Threads"]), resident_mib, idle_share, stop_s)


def _status(process_id: int) -> Iterator[tuple[str, str]]:
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        yield name, (rest.split() or [""])[0]


def _processor_s(process_id: int) -> float:
    # After the name, which is in brackets and may hold anything: user and system time (man 5 proc).
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


if __name__ == "__main__":
    raise SystemExit(run_bench(parse_flags(ManyModelsConfig, "benchmarks.many_models")))
