"""`python -m benchmarks.http_cost`: what `serve --http` costs gRPC callers, and REST beside gRPC.

A server without --http, one with it, and the latter's REST API answer the same requests of one image, over
each transport, by h2load. The figures are ratios of neighbours in time: a busy machine makes them vary, and
favours none. gRPC's p50 is compared in many short blocks, as the difference looked for is small: the two
servers take turns (without, with, with, without), and each round starts two new ones, since the same program
is a few percent faster or slower from one process to the next. `serve` without --http imports nothing of it.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from benchmarks.flags import parse_flags
from benchmarks.serving.check import checked_answer_bytes, request_body
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.errors import BenchError
from benchmarks.serving.load import Load, latencies_us, measure, require_h2load
from benchmarks.serving.networks import lenet
from benchmarks.serving.server_process import running
from foldserve.demo.children import ending_with_us
from foldserve.runtime.cpus import find_cpus

if TYPE_CHECKING:
    from benchmarks.serving.contestants import Transport
    from benchmarks.serving.networks import Network

_RUN_LIMIT_S = 600
_BINARY_HEADER = "Inference-Header-Content-Length: 0"  # the body is pixels alone


class HttpCostConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Compare servers with and without --http, as ratios in one run."""

    rounds: int = Field(default=6, ge=2)
    """Rounds, each with two new servers per transport."""
    requests: int = Field(default=3000, ge=10)
    """Requests of one image per measurement of the throughput."""
    connections: int = Field(default=16, ge=1)
    """Connections for the throughput; latencies are those of one."""
    blocks: int = Field(default=20, ge=1)
    """Blocks of four measurements of gRPC's p50 per round: without --http, with, with, without."""
    block_requests: int = Field(default=300, ge=10)
    """Requests of one image per measurement of gRPC's p50."""


class Round(NamedTuple):
    """One round: gRPC's p50 with --http to that without, per block; REST's requests/s and CPU to gRPC's."""

    p50_ratios: list[float]
    rest_rate_ratio: float
    rest_cpu_ratio: float
    rest_per_s: float


def run_bench(config: HttpCostConfig) -> int:
    """Measure and print the table; return 0."""
    require_h2load()
    console = Console(width=110)
    console.print(
        f"CPUs: {find_cpus()}; LeNet, one image per request; {config.rounds} rounds of {4 * config.blocks} "
        f"times {config.block_requests} requests for p50 (median and its 95 % interval over all blocks) and "
        f"of {config.requests} for the rest (median, least and most)"
    )
    table = Table(
        "transport",
        "gRPC p50: with / without --http",
        "REST / gRPC requests/s",
        "REST / gRPC CPU",
        "REST req/s",
    )
    with tempfile.TemporaryDirectory(prefix="bench-networks-") as folder:
        network = lenet(Path(folder))
        transports: tuple[Transport, ...] = ("native", "grpcio")
        for transport in transports:
            rounds = [
                _measure(transport, network, config, Path(folder) / f"port-{transport}-{index}")
                for index in range(config.rounds)
            ]
            table.add_row(
                transport,
                _median_interval([ratio for entry in rounds for ratio in entry.p50_ratios]),
                _spread([entry.rest_rate_ratio for entry in rounds]),
                _spread([entry.rest_cpu_ratio for entry in rounds]),
                _spread([entry.rest_per_s for entry in rounds]),
            )
    console.print(table)
    return 0


def _measure(transport: Transport, network: Network, config: HttpCostConfig, port_file: Path) -> Round:
    flags = ("--http", "--http-port", "0", "--http-port-file", str(port_file))
    lone, many = Load(), Load(connections=config.connections)
    with ExitStack() as stack:
        plain = stack.enter_context(running(Contestant("foldserve", transport), network))
        both = stack.enter_context(running(Contestant("foldserve", transport, flags), network))
        body = request_body(plain, network, 1)
        answer_bytes = checked_answer_bytes(plain, network, 1)
        pixels = Path(port_file).with_suffix(".pixels")
        pixels.write_bytes(network.images(1).tobytes())

        def block_ratio() -> float:
            without, with_http, with_again, without_again = (
                np.median(
                    latencies_us(
                        server, lone, body=body, answer_bytes=answer_bytes, requests=config.block_requests
                    )
                )
                for server in (plain, both, both, plain)
            )
            return float((with_http + with_again) / (without + without_again))

        block_ratio()  # warms up
        _rest_per_s(port_file, pixels, config)
        p50_ratios = [block_ratio() for _ in range(config.blocks)]
        grpc = measure(both, many, body=body, answer_bytes=answer_bytes, requests=config.requests)
        before_s = both.processor_s()
        rest_per_s = _rest_per_s(port_file, pixels, config)
        rest_us = (both.processor_s() - before_s) / config.requests * 1e6
    return Round(p50_ratios, rest_per_s / grpc.requests_per_s, rest_us / grpc.server_us, rest_per_s)


def _rest_per_s(port_file: Path, pixels: Path, config: HttpCostConfig) -> float:
    url = f"http://127.0.0.1:{port_file.read_text().strip()}/v2/models/lenet/infer"
    command = ["h2load", "--h1", f"--requests={config.requests}", f"--clients={config.connections}"]
    command += [f"--data={pixels}", f"--header={_BINARY_HEADER}", url]
    done = subprocess.run(
        ending_with_us(command), capture_output=True, text=True, timeout=_RUN_LIMIT_S, check=False
    )
    rate = re.search(r"([\d.]+) req/s", done.stdout)
    if rate is None or f"status codes: {config.requests} 2xx" not in done.stdout:
        raise BenchError(f"the REST API did not answer all requests: {done.stdout}{done.stderr}")
    return float(rate.group(1))


def _median_interval(values: list[float]) -> str:
    """Return the median and its 95 % interval: two order statistics, by the normal form of the binomial."""
    ordered, half = sorted(values), 0.98 * math.sqrt(len(values))
    least = ordered[max(0, math.floor(len(ordered) / 2 - half))]
    most = ordered[min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half) - 1)]
    return f"{statistics.median(ordered):.3f} [{least:.3f}, {most:.3f}]"


def _spread(values: list[float]) -> str:
    form = "{:.0f}" if max(values) > 100 else "{:.3f}"
    median, least, most = (
        form.format(value) for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} [{least}, {most}]"


if __name__ == "__main__":
    raise SystemExit(run_bench(parse_flags(HttpCostConfig, "benchmarks.http_cost")))
