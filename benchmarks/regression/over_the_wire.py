"""Compares the CPU time of two server processes per request, each loaded in turn with h2load."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from benchmarks.serving.check import checked_answer_bytes, request_body
from benchmarks.serving.load import server_us
from benchmarks.serving.server_process import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.serving.contestants import Contestant
    from benchmarks.serving.load import Load
    from benchmarks.serving.networks import Network
    from benchmarks.serving.server_process import ServerProcess

_WARM_UP_REQUESTS = 300
_LEAST_REQUESTS = 100


@contextmanager
def over_the_wire(
    served: Contestant, bare: Contestant, load: Load, network: Network, planted_us: float
) -> Iterator[Callable[[float], float]]:
    """Run both servers for the block; yield a function that measures one ratio.

    Raises:
        BenchError: a server ended, failed or answered wrongly.
    """
    slowed = replace(served, planted_us=planted_us)
    with running(slowed, network) as top, running(bare, network) as bottom:
        cost_of_top, cost_of_bottom = (_prepare(server, load, network) for server in (top, bottom))
        turns = count()

        def ratio(cpu_s: float) -> float:
            # In turns, so that neither always follows the other.
            if next(turns) % 2:
                top_us = cost_of_top(cpu_s)
                return top_us / cost_of_bottom(cpu_s)
            bottom_us = cost_of_bottom(cpu_s)
            return cost_of_top(cpu_s) / bottom_us

        yield ratio


def _prepare(server: ServerProcess, load: Load, network: Network) -> Callable[[float], float]:
    """Check an answer and warm up; return a function that takes CPU seconds and returns microseconds."""
    answer_bytes = checked_answer_bytes(server, network, load.images)
    body = request_body(server, network, load.images)

    def cost_us(requests: int) -> float:
        return server_us(server, load, body=body, answer_bytes=answer_bytes, requests=requests)

    cost_us(_WARM_UP_REQUESTS)
    usual_us = cost_us(_WARM_UP_REQUESTS)
    return lambda cpu_s: cost_us(max(_LEAST_REQUESTS, round(cpu_s * 1e6 / usual_us)))
