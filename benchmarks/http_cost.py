"""`python -m benchmarks.http_cost`: what `serve --http` costs gRPC callers, and REST beside gRPC.

A server without --http, one with it, and the latter's REST API answer the same requests of one image, one
after the other in each round, over each transport. The figures are ratios within a round, by h2load: a busy
machine makes them vary, and favours none. `serve` without --http imports nothing of it.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from benchmarks.flags import parse_flags
from benchmarks.serving.check import checked_answer_bytes, request_body
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.errors import BenchError
from benchmarks.serving.load import Load, measure, require_h2load
from benchmarks.serving.networks import lenet
from benchmarks.serving.server_process import running
from foldserve.demo.children import ending_with_us
from foldserve.runtime.cpus import find_cpus

if TYPE_CHECKING:
    from benchmarks.serving.contestants import Transport
    from benchmarks.serving.networks import Network
    from benchmarks.serving.server_process import ServerProcess

_RUN_LIMIT_S = 600
_BINARY_HEADER = "Inference-Header-Content-Length: 0"  # the body is pixels alone


class HttpCostConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Compare servers with and without --http, as ratios in one run."""

    rounds: int = Field(default=7, ge=1)
    """Rounds; the table shows medians and, in brackets, the least and the most."""
    requests: int = Field(default=3000, ge=10)
    """Requests of one image per measurement."""
    connections: int = Field(default=16, ge=1)
    """Connections for the throughput; latencies are those of one."""


class Round(NamedTuple):
    """One round: p50 of one gRPC caller without and with --http; REST's requests/s to gRPC's, and its CPU."""

    p50_ratio: float
    rest_rate_ratio: float
    rest_cpu_ratio: float
    rest_per_s: float


def run_bench(config: HttpCostConfig) -> int:
    """Measure and print the table; return 0."""
    require_h2load()
    console = Console(width=110)
    console.print(
        f"CPUs: {find_cpus()}; {config.rounds} rounds of {config.requests} requests, LeNet, one image"
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
            rounds = _measure(transport, network, config, Path(folder) / f"port-{transport}")
            table.add_row(transport, *(_spread([entry[index] for entry in rounds]) for index in range(4)))
    console.print(table)
    return 0


def _measure(transport: Transport, network: Network, config: HttpCostConfig, port_file: Path) -> list[Round]:
    flags = ("--http", "--http-port", "0", "--http-port-file", str(port_file))
    lone, many = Load(), Load(connections=config.connections)
    with ExitStack() as stack:
        plain = stack.enter_context(running(Contestant("foldserve", transport), network))
        both = stack.enter_context(running(Contestant("foldserve", transport, flags), network))
        body = request_body(plain, network, 1)
        answer_bytes = checked_answer_bytes(plain, network, 1)
        pixels = Path(port_file).with_suffix(".pixels")
        pixels.write_bytes(network.images(1).tobytes())

        def p50_us(server: ServerProcess) -> float:
            return measure(
                server, lone, body=body, answer_bytes=answer_bytes, requests=config.requests
            ).p50_us

        rounds = []
        for index in range(config.rounds + 1):
            order = (plain, both) if index % 2 else (both, plain)
            p50s = {server.port: p50_us(server) for server in order}
            grpc = measure(both, many, body=body, answer_bytes=answer_bytes, requests=config.requests)
            before_s = both.processor_s()
            rest_per_s = _rest_per_s(port_file, pixels, config)
            rest_us = (both.processor_s() - before_s) / config.requests * 1e6
            if index:  # the first warms up
                rounds.append(
                    Round(
                        p50s[both.port] / p50s[plain.port],
                        rest_per_s / grpc.requests_per_s,
                        rest_us / grpc.server_us,
                        rest_per_s,
                    )
                )
    return rounds


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


def _spread(values: list[float]) -> str:
    form = "{:.0f}" if max(values) > 100 else "{:.3f}"
    median, least, most = (
        form.format(value) for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} [{least}, {most}]"


if __name__ == "__main__":
    raise SystemExit(run_bench(parse_flags(HttpCostConfig, "benchmarks.http_cost")))
