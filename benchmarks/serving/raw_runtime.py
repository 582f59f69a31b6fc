"""Measures ONNX Runtime alone in this process, at its best batch size or a given one: any server's limit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.serving.load import Measurement
from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES
from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from benchmarks.serving.networks import Network

_BATCHES = (1, 8, 16, 32, 64)
_PROBE_S = 0.5


class RawRuntime:
    """A session with the batch size, of ``batches``, and thread count that gave the most images per second."""

    def __init__(self, network: Network, batches: tuple[int, ...] = _BATCHES) -> None:
        self._network = network
        model = network.model_file.read_bytes()
        sessions = [Session(model, device="cpu", intra_op_threads=threads) for threads in {1, usable_cpus()}]
        self._session, self._batch = max(
            ((session, batch) for session in sessions for batch in batches),
            key=lambda pair: _measure(pair[0], pair[1], network, _PROBE_S).images_per_s,
        )

    def measure(self, seconds: float) -> Measurement:
        """Run for about ``seconds``; one run of the best batch counts as a request."""
        return _measure(self._session, self._batch, self._network, seconds)


def _measure(session: Session, batch: int, network: Network, seconds: float) -> Measurement:
    feeds = {IMAGE: network.images(batch)}
    outputs = (LOGITS, PROBABILITIES)
    session.run(outputs, feeds)  # memory is laid out on the first run of a shape
    ends = [time.perf_counter()]
    processor_s = time.process_time()
    while ends[-1] - ends[0] < seconds:
        session.run(outputs, feeds)
        ends.append(time.perf_counter())
    processor_s = time.process_time() - processor_s
    latencies_us = np.diff(ends) * 1e6
    runs_per_s = len(latencies_us) / (ends[-1] - ends[0])
    return Measurement(
        requests=len(latencies_us),
        requests_per_s=runs_per_s,
        images_per_s=runs_per_s * batch,
        server_us=processor_s / len(latencies_us) * 1e6,
        p50_us=float(np.percentile(latencies_us, 50)),
        p99_us=float(np.percentile(latencies_us, 99)),
    )
