"""`python -m benchmarks.serving`: foldserve against bare loops, mosec and raw ONNX Runtime.

Starts the servers, loads them in turn and prints a table of ratios within one run, and one of where the CPU
time of a small request goes.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich.console import Console

from benchmarks.flags import parse_flags
from benchmarks.serving.config import BenchServingConfig, Group
from benchmarks.serving.errors import BenchError
from benchmarks.serving.load import require_h2load
from benchmarks.serving.networks import Network, alexnet, lenet, trained_lenet
from benchmarks.serving.report import measurements_table, ratios_table, shares_table, to_json
from benchmarks.serving.rounds import GroupResult, measure_group
from benchmarks.serving.rows import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Callable

_REPORT_WIDTH = 150
_BUILDERS: dict[str, Callable[[Path, Path | None], Network]] = {
    "lenet": lenet,
    "trained-lenet": trained_lenet,
    "alexnet": alexnet,
}


def run_bench(config: BenchServingConfig) -> int:
    """Measure the groups chosen in ``config``, print the tables and return 0.

    Raises:
        BenchError: h2load is missing, or a server failed or answered wrongly.
    """
    # Redirected output has no width of its own, and rich would squeeze the tables into 80 columns.
    console = Console(width=None if sys.stdout.isatty() else _REPORT_WIDTH)
    require_h2load()
    if config.json_file is not None:
        config.json_file.open("a").close()  # what cannot be written is found before anything is measured
    _share_processors(config.processors)
    console.print(_setting(config))
    results: dict[Group, GroupResult] = {}
    with tempfile.TemporaryDirectory(prefix="bench-networks-") as folder, console.status("") as status:
        networks: dict[str, Network] = {}
        for group in dict.fromkeys(config.groups):
            name = NETWORKS[group]
            status.update(f"making {name}")
            networks.setdefault(name, _BUILDERS[name](Path(folder), config.repository))
            results[group] = measure_group(group, networks[name], config, status.update)
    tables = (measurements_table(results), shares_table(results), ratios_table(results))
    console.print(*(table for table in tables if table.row_count))
    if config.json_file is not None:
        config.json_file.write_text(to_json(results))
    return 0


def _share_processors(count: int) -> None:
    """Pin this process, and with it every server and client that it starts, to the first ``count`` CPUs."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < count:
        raise BenchError(
            f"{count} processors were asked for, {len(usable)} are usable: give --processors {len(usable)}"
        )
    os.sched_setaffinity(0, usable[:count])


def _setting(config: BenchServingConfig) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "grpcio", "protobuf"))
    return (
        f"{config.processors} processors shared by server and client, {config.rounds} rounds of about "
        f"{config.seconds:g} s, {_processor_name()}, Python {platform.python_version()}, {versions}"
    )


def _processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> int:
    """Read the command line and return the exit status."""
    # So that SIGTERM leaves no temporary folder behind either; the servers end with this process anyway.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return run_bench(parse_flags(BenchServingConfig, "benchmarks.serving"))
    except ValidationError as error:
        details = "; ".join(f"--{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        print(f"benchmarks.serving: {details.replace('_', '-')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except (BenchError, OSError) as error:
        print(f"benchmarks.serving: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
