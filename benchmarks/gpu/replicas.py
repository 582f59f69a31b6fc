"""`python -m benchmarks.gpu.replicas`: LeNet by several servers on one port, beside mosec.

mosec has as many workers. On the CPUs of the machine, of which those with a GPU have many; half of them are
left to h2load.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.serving.check import checked_answer_bytes, request_body
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.errors import BenchError
from benchmarks.serving.load import Load, measure, require_h2load
from benchmarks.serving.networks import Network, lenet
from benchmarks.serving.server_process import ServerProcess, running
from foldserve.runtime.cpus import usable_cpus

_CONNECTIONS_PER_REPLICA = 32
_WARM_UP_REQUESTS = 2000
_SECONDS = 4.0


def main() -> int:
    """Print a line per number of replicas; return 0."""
    try:
        require_h2load()
        with tempfile.TemporaryDirectory(prefix="bench-replicas-") as folder:
            network = lenet(Path(folder))
            most = max(1, usable_cpus() // 2)
            for count in sorted({1, most // 4 or 1, most // 2 or 1, most}):
                ours = _foldserve(network, count, threads=most)
                try:
                    theirs, note = _mosec(network, count, threads=most), ""
                except BenchError as error:
                    theirs, note = float("nan"), f" ({error})"
                print(
                    f"{count:2} replicas: foldserve {ours:,.0f} requests/s, mosec {theirs:,.0f}, "
                    f"ratio {ours / theirs:.2f}{note}",
                    flush=True,
                )
    except BenchError as error:
        print(f"benchmarks.gpu.replicas: {error}", file=sys.stderr)
        return 1
    return 0


def _foldserve(network: Network, count: int, *, threads: int) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    contestant = Contestant("foldserve", "native", ("--reuse-port", "--port", str(port)))
    with ExitStack() as stack:
        servers = [stack.enter_context(running(contestant, network)) for _ in range(count)]
        return _requests_per_s(servers[0], network, count, threads)


def _mosec(network: Network, count: int, *, threads: int) -> float:
    os.environ["BARE_WORKERS"] = str(count)
    try:
        with running(Contestant("bare_mosec"), network) as server:
            return _requests_per_s(server, network, count, threads)
    finally:
        del os.environ["BARE_WORKERS"]


def _requests_per_s(server: ServerProcess, network: Network, count: int, threads: int) -> float:
    load = Load(connections=_CONNECTIONS_PER_REPLICA * count, threads=min(threads, 8))
    answer_bytes = checked_answer_bytes(server, network, load.images)
    body = request_body(server, network, load.images)

    def rate(requests: int) -> float:
        return measure(server, load, body=body, answer_bytes=answer_bytes, requests=requests).requests_per_s

    rate(_WARM_UP_REQUESTS)
    return rate(max(_WARM_UP_REQUESTS, round(rate(_WARM_UP_REQUESTS) * _SECONDS)))


if __name__ == "__main__":
    sys.exit(main())
