"""Loads a server with h2load: a fixed number of requests over N connections of M streams each."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.serving.bare_model import METHOD
from benchmarks.serving.errors import BenchError
from foldserve.demo.children import ending_with_us

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from benchmarks.serving.server_process import ServerProcess

_RUN_LIMIT_S = 600
_LOGGED_SHARE = 3  # of the requests, for latencies
_DATA_HEADER_BYTES = 5  # of each gRPC message: the compressed flag and the length


@dataclass(frozen=True)
class Load:
    """The load: ``connections`` with ``streams`` concurrent calls each, ``images`` per request.

    h2load runs ``threads`` threads. With ``per_s``, each connection sends that many requests per second,
    answered or not as long as it has streams; without, it sends the next as soon as one is answered.
    """

    connections: int = 1
    streams: int = 1
    images: int = 1
    threads: int = 1
    per_s: float | None = None


@dataclass(frozen=True)
class Measurement:
    """Result of one run: latency as seen by the client, CPU time of the server.

    Where foldserve's own share is asked for, also the mean batch that it formed, in images, and ONNX
    Runtime's CPU time per request for such batches.
    """

    requests: int
    requests_per_s: float
    images_per_s: float
    server_us: float  # processor time a request
    p50_us: float
    p99_us: float
    batch: float | None = None
    model_us: float | None = None


def require_h2load() -> None:
    """Raise BenchError if h2load is not installed."""
    if shutil.which("h2load") is None:
        raise BenchError("h2load is not installed; it is in Debian's and Ubuntu's package nghttp2-client")


def measure(
    server: ServerProcess, load: Load, *, body: bytes, answer_bytes: int, requests: int
) -> Measurement:
    """Send ``requests`` times ``body`` and return how it went.

    Raises:
        BenchError: h2load failed, or not every request was answered in full. A gRPC error is HTTP status 200
            with no data, so answers are counted by their bytes: all of them must be there.
    """
    with _h2load_flags(server, load, body) as flags:
        message_bytes = _message_bytes(server, answer_bytes)
        before_s = server.processor_s()
        requests_per_s = _run_h2load(server, flags, requests, message_bytes)
        server_s = server.processor_s() - before_s
        # Separate and fewer, as recording each latency takes CPU time from the server.
        logged = max(load.connections * load.streams, requests // _LOGGED_SHARE)
        latencies = _latencies_us(server, flags, logged, message_bytes)
    return Measurement(
        requests=requests,
        requests_per_s=requests_per_s,
        images_per_s=requests_per_s * load.images,
        server_us=server_s / requests * 1e6,
        p50_us=float(np.percentile(latencies, 50)),
        p99_us=float(np.percentile(latencies, 99)),
    )


def server_us(server: ServerProcess, load: Load, *, body: bytes, answer_bytes: int, requests: int) -> float:
    """Send ``requests`` times ``body`` and return the server's CPU microseconds per request.

    Raises:
        BenchError: as for `measure`.
    """
    return rate_and_cost([server], load, body=body, answer_bytes=answer_bytes, requests=requests)[1]


def rate_and_cost(
    servers: Sequence[ServerProcess], load: Load, *, body: bytes, answer_bytes: int, requests: int
) -> tuple[float, float]:
    """Send ``requests`` times ``body`` to the port that ``servers`` share.

    Returns:
        Requests per second, and the CPU microseconds of all servers per request.

    Raises:
        BenchError: as for `measure`.
    """
    with _h2load_flags(servers[0], load, body) as flags:
        before_s = sum(server.processor_s() for server in servers)
        rate = _run_h2load(servers[0], flags, requests, _message_bytes(servers[0], answer_bytes))
        return rate, (sum(server.processor_s() for server in servers) - before_s) / requests * 1e6


def latencies_us(
    server: ServerProcess, load: Load, *, body: bytes, answer_bytes: int, requests: int
) -> NDArray[np.float64]:
    """Send ``requests`` times ``body`` and return the latencies [requests] in microseconds.

    Raises:
        BenchError: as for `measure`.
    """
    with _h2load_flags(server, load, body) as flags:
        return _latencies_us(server, flags, requests, _message_bytes(server, answer_bytes))


def _latencies_us(
    server: ServerProcess, flags: list[str], requests: int, message_bytes: int
) -> NDArray[np.float64]:
    with tempfile.NamedTemporaryFile(prefix="bench-h2load-") as log:
        _run_h2load(server, [*flags, f"--log-file={log.name}"], requests, message_bytes)
        return np.loadtxt(log.name, usecols=2, ndmin=1)


@contextmanager
def _h2load_flags(server: ServerProcess, load: Load, body: bytes) -> Iterator[list[str]]:
    """Write ``body`` to a file for the block, and yield h2load's flags for sending it."""
    with tempfile.TemporaryDirectory(prefix="bench-h2load-") as folder:
        data = Path(folder) / "body"
        is_grpc = server.contestant.speaks_grpc
        data.write_bytes(struct.pack(">BI", 0, len(body)) + body if is_grpc else body)
        flags = [f"--clients={load.connections}", f"--threads={load.threads}", f"--data={data}"]
        if is_grpc:
            flags += [f"--max-concurrent-streams={load.streams}"]
            flags += ["--header=content-type: application/grpc", "--header=te: trailers"]
        else:
            flags += ["--h1"]
        if load.per_s is not None:
            flags += [f"--rps={load.per_s:g}"]
        yield flags


def _message_bytes(server: ServerProcess, answer_bytes: int) -> int:
    return answer_bytes + server.contestant.speaks_grpc * _DATA_HEADER_BYTES


def _run_h2load(server: ServerProcess, flags: list[str], requests: int, message_bytes: int) -> float:
    """Send ``requests`` of ``message_bytes`` each and return the number answered per second."""
    url = f"http://127.0.0.1:{server.port}{METHOD if server.contestant.speaks_grpc else '/inference'}"
    finished = subprocess.run(
        ending_with_us(["h2load", f"--requests={requests}", *flags, url]),
        capture_output=True,
        text=True,
        timeout=_RUN_LIMIT_S,
        check=False,
    )
    return _check_output(server, finished, requests, message_bytes)


def _check_output(
    server: ServerProcess, finished: subprocess.CompletedProcess[str], requests: int, answer_bytes: int
) -> float:
    """Check that every answer is complete and return the requests per second that h2load reports."""
    server.check_runs()
    output = finished.stdout
    rate = re.search(r"([\d.]+) req/s", output)
    succeeded = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    received = re.search(r"\((\d+)\) data", output)
    if finished.returncode != 0 or rate is None or succeeded is None or received is None:
        said = (finished.stderr or output).strip().splitlines() or ["nothing"]
        raise BenchError(f"h2load failed against {server.contestant}: {said[-1]}")
    if [int(count) for count in succeeded.groups()] != [requests, 0, 0, 0]:
        raise BenchError(
            f"{server.contestant} did not answer all of {requests} requests: {succeeded.group()}"
        )
    if int(received.group(1)) != requests * answer_bytes:
        raise BenchError(
            f"{server.contestant} sent {received.group(1)} bytes of data; {requests} right answers are "
            f"{requests * answer_bytes}: some calls failed or were answered differently"
        )
    return float(rate.group(1))
