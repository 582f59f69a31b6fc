"""`python -m benchmarks.fairness`: how long one image waits beside requests of 8,192, against first come.

Two servers run at the same time and are loaded in turn: foldserve, and foldserve with a queue that serves
first come, first served. Each round sends both the same: large requests, each caller's next one as soon as
the one before is answered, and single images at fixed times, all callers over connections of their own. The
ratios are taken within a round.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from benchmarks.fairness.load import Heard, Mixture, send, send_small
from benchmarks.flags import parse_flags
from benchmarks.serving.check import checked_answer_bytes, request_body
from benchmarks.serving.contestants import Contestant
from benchmarks.serving.networks import lenet
from benchmarks.serving.server_process import running
from foldserve.runtime.cpus import find_cpus

if TYPE_CHECKING:
    from collections.abc import Sequence

# Time for which single images are sent alone.
_ALONE_S = 2.0
# Large requests of all callers must find room in the queue.
_QUEUE_FLAGS = ("--max-queue-rows", "1000000", "--max-queue-mib", "1024")


class FairnessConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Measure how long a small request waits beside large ones, as ratios in one run."""

    rounds: int = Field(default=7, ge=1)
    """Interleaved rounds; the table shows medians and, in brackets, the least and the most."""
    large_callers: int = Field(default=2, ge=1)
    """Callers of large requests, each with one under way at all times."""
    large_images: int = Field(default=8192, ge=1)
    """Images of a large request."""
    large_requests: int = Field(default=8, ge=1)
    """Large requests of each caller in one measurement."""
    small_per_s: float = Field(default=100.0, gt=0)
    """Requests of one image a second, all from one caller."""
    transport: Literal["native", "grpcio"] = "native"
    """The servers' transport."""


def run_bench(config: FairnessConfig) -> int:
    """Measure and print the table; return 0.

    Raises:
        BenchError: a server ended or answered wrongly.
    """
    console = Console(width=140)
    console.print(
        f"{find_cpus()}; {config.rounds} rounds; {config.large_callers} callers send {config.large_images:,} "
        f"images at once, another one image {config.small_per_s:g} times a second; {config.transport}"
    )
    fair: list[Heard] = []
    first_come: list[Heard] = []
    alone_p99_ms: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-networks-") as folder, ExitStack() as stack:
        network = lenet(Path(folder))
        kinds: tuple[Literal["foldserve", "first_come"], ...] = ("foldserve", "first_come")
        servers = [
            stack.enter_context(running(Contestant(kind, config.transport, _QUEUE_FLAGS), network))
            for kind in kinds
        ]
        for server in servers:
            checked_answer_bytes(server, network, 1)
        large_file = Path(folder) / "large"
        large_file.write_bytes(request_body(servers[0], network, config.large_images))
        mixture = Mixture(
            config.large_callers,
            config.large_requests,
            config.large_images,
            large_file,
            request_body(servers[0], network, 1),
            config.small_per_s,
        )
        for number in range(config.rounds + 1):
            trials = [*zip(servers, (fair, first_come), strict=True)]
            for server, heard in trials if number % 2 else reversed(trials):
                heard.append(send(server, mixture))
            alone_p99_ms.append(send_small(servers[0], mixture, _ALONE_S).small_p99_ms)
    # The first round lays out memory and wakes threads.
    console.print(_table(fair[1:], first_come[1:], alone_p99_ms[1:]))
    return 0


def _table(fair: Sequence[Heard], first_come: Sequence[Heard], alone_p99_ms: Sequence[float]) -> Table:
    table = Table("", "foldserve", "first come, first served", "ratio", "must")
    waits = [[each.small_p99_ms for each in heard] for heard in (fair, first_come)]
    rates = [[each.large_images_per_s for each in heard] for heard in (fair, first_come)]
    costs = [[each.server_us_per_image for each in heard] for heard in (fair, first_come)]
    table.add_row(
        "one image, p99 in ms", *map(_with_spread, waits), _with_spread(_ratios(*waits)), "at most 0.1"
    )
    table.add_row("  the same alone", _with_spread(alone_p99_ms), "", "", "")
    table.add_row(
        "server CPU per image, us", *map(_with_spread, costs), _with_spread(_ratios(*costs)), "at most 1.05"
    )
    table.add_row(
        "large requests, images/s", *map(_with_spread, rates), _with_spread(_ratios(*rates)), "at least 0.95"
    )
    return table


def _ratios(tops: Sequence[float], bottoms: Sequence[float]) -> list[float]:
    return [top / bottom for top, bottom in zip(tops, bottoms, strict=True)]


def _with_spread(values: Sequence[float]) -> str:
    """Return "median (least - most)"."""
    median, least, most = (
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({least} - {most})"


if __name__ == "__main__":
    raise SystemExit(run_bench(parse_flags(FairnessConfig, "benchmarks.fairness")))
