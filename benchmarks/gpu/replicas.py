"""`python -m benchmarks.gpu.replicas`: LeNet by several servers on one port, beside mosec.

mosec has as many workers. On the CPUs of the machine, of which those with a GPU have many; half of them are
left to h2load. Both are up at once and loaded in turn, so that whatever else the machine does meets both; the
ratio is taken within a round. It means something only if the machine does next to nothing else: at a load of
eleven on two CPUs each wake-up waits, and mosec, which waits a millisecond for a batch, wakes up a tenth as
often; foldserve then served 0.3 of its requests/s, and 1.3 times as many on the same machine alone.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.serving.check import checked_answer_bytes, request_body
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.errors import BenchError, ContestantMissingError
from benchmarks.serving.load import Load, rate_and_cost, require_h2load
from benchmarks.serving.networks import Network, lenet
from benchmarks.serving.server_process import ServerProcess, running
from foldserve.runtime.cpus import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONNECTIONS_PER_REPLICA = 32
_MOST_CLIENT_THREADS = 8
_WARM_UP_REQUESTS = 2000
_ROUNDS = 5
_SECONDS = 1.5


@dataclass(frozen=True)
class Loaded:
    """Servers of one port, and what to send them."""

    servers: list[ServerProcess]
    load: Load
    body: bytes
    answer_bytes: int
    requests: int

    def measure(self) -> tuple[float, float]:
        """Return requests/s and the servers' CPU microseconds per request, of one run."""
        return _run(self.servers, self.load, self.body, self.answer_bytes, self.requests)


def main() -> int:
    """Print a line per number of replicas; return 0."""
    try:
        require_h2load()
        with tempfile.TemporaryDirectory(prefix="bench-replicas-") as folder:
            network = lenet(Path(folder))
            most = max(1, usable_cpus() // 2)
            print(f"load average {os.getloadavg()[0]:.1f} on {usable_cpus()} CPUs", flush=True)
            for count in sorted({1, most // 4 or 1, most // 2 or 1, most}):
                print(_compare(network, count, threads=min(most, _MOST_CLIENT_THREADS)), flush=True)
    except BenchError as error:
        print(f"benchmarks.gpu.replicas: {error}", file=sys.stderr)
        return 1
    return 0


def _compare(network: Network, count: int, *, threads: int) -> str:
    """Return a line: the medians of both, and the ratio within a round with its range."""
    load = Load(connections=_CONNECTIONS_PER_REPLICA * count, threads=threads)
    with ExitStack() as stack:
        ours = _prepare(stack.enter_context(_foldserve(network, count)), network, load)
        try:
            theirs = _prepare([stack.enter_context(_mosec(network, count))], network, load)
        except ContestantMissingError as error:
            rate, cost_us = ours.measure()
            alone = f"foldserve {rate:,.0f} requests/s ({cost_us:.0f} us of CPU each)"
            return f"{count:2} replicas: {alone}; {error}"
        pairs = []
        for number in range(_ROUNDS):
            # Every other round backwards, so that neither always follows the other.
            first, second = (ours, theirs) if number % 2 else (theirs, ours)
            found = {id(first): first.measure(), id(second): second.measure()}
            pairs.append((found[id(ours)], found[id(theirs)]))
    return f"{count:2} replicas: {describe(pairs)}"


def describe(pairs: list[tuple[tuple[float, float], tuple[float, float]]]) -> str:
    """Return medians and ratios in words; a round has requests/s and CPU us, of foldserve and of mosec."""
    words = []
    for name, runs in zip(("foldserve", "mosec"), zip(*pairs, strict=True), strict=True):
        rate, cost_us = (median(values) for values in zip(*runs, strict=True))
        words.append(f"{name} {rate:,.0f} requests/s ({cost_us:.0f} us of CPU each)")
    ratios = [our_rate / their_rate for (our_rate, _), (their_rate, _) in pairs]
    return f"{', '.join(words)}, ratio {median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


@contextmanager
def _foldserve(network: Network, count: int) -> Iterator[list[ServerProcess]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    contestant = Contestant("foldserve", "native", ("--reuse-port", "--port", str(port)))
    with ExitStack() as stack:
        yield [stack.enter_context(running(contestant, network)) for _ in range(count)]


@contextmanager
def _mosec(network: Network, count: int) -> Iterator[ServerProcess]:
    os.environ["BARE_WORKERS"] = str(count)
    try:
        with running(Contestant("bare_mosec"), network) as server:
            yield server
    finally:
        del os.environ["BARE_WORKERS"]


def _prepare(servers: list[ServerProcess], network: Network, load: Load) -> Loaded:
    """Check an answer, warm up, and fix the number of requests from the rate."""
    answer_bytes = checked_answer_bytes(servers[0], network, load.images)
    body = request_body(servers[0], network, load.images)
    _run(servers, load, body, answer_bytes, _WARM_UP_REQUESTS)
    rate, _ = _run(servers, load, body, answer_bytes, _WARM_UP_REQUESTS)
    return Loaded(servers, load, body, answer_bytes, max(_WARM_UP_REQUESTS, round(rate * _SECONDS)))


def _run(
    servers: list[ServerProcess], load: Load, body: bytes, answer_bytes: int, requests: int
) -> tuple[float, float]:
    return rate_and_cost(servers, load, body=body, answer_bytes=answer_bytes, requests=requests)


if __name__ == "__main__":
    sys.exit(main())
