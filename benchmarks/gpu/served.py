"""Measures a server under the load of client processes, and checks the number of answers in each response."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.format import LOGITS
from foldserve.serving.client.sync_client import Client

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.gpu.networks import Network

_SLACK_S = 120.0  # for processes to start, beyond the time measured


@dataclass(frozen=True)
class Load:
    """Client processes of ``callers`` threads each, which send one request of ``rows`` images at a time."""

    processes: int
    callers: int
    rows: int

    def __str__(self) -> str:
        """Return the load in words, for a table."""
        return f"{self.processes * self.callers} callers x {self.rows}"


def measure(address: str, model: str, network: Network, load: Load, seconds: float) -> tuple[float, float]:
    """Return images/s and the median latency in milliseconds under ``load``."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(load.processes) as pool:
        images = np.random.default_rng(0).integers(0, 256, (load.rows, *network.image_shape), dtype=np.uint8)
        arguments = (address, model, images, load.callers, seconds)
        results = [pool.apply_async(_client, arguments) for _ in range(load.processes)]
        answers = [result.get(timeout=seconds + _SLACK_S) for result in results]
    latencies_s = sorted(latency_s for latencies, _ in answers for latency_s in latencies)
    images_per_s = sum(len(latencies) * load.rows / took_s for latencies, took_s in answers)
    return images_per_s, 1000 * latencies_s[len(latencies_s) // 2]


def _client(
    address: str, model: str, images: NDArray[np.uint8], callers: int, seconds: float
) -> tuple[list[float], float]:
    """Load the server from this process; return each request's latency and the total time, in seconds."""
    latencies_s: list[float] = []
    with Client(address) as client:
        client.infer(model, images)  # connects and warms up
        started_s = time.perf_counter()

        def call() -> None:
            while (begun_s := time.perf_counter()) < started_s + seconds:
                assert len(client.infer(model, images)[LOGITS]) == len(images)
                latencies_s.append(time.perf_counter() - begun_s)

        threads = [threading.Thread(target=call) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return latencies_s, time.perf_counter() - started_s
