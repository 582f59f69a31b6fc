"""Tells how much of a request's CPU time is ONNX Runtime's own, for the batches that a server formed."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc

from benchmarks.serving.errors import BenchError
from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES
from foldserve.runtime.session import Session
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.pb import open_inference_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.serving.load import Load, Measurement
    from benchmarks.serving.networks import Network
    from benchmarks.serving.server_process import ServerProcess

_OUTPUTS = (LOGITS, PROBABILITIES)
_PROBE_S = 0.1
_ASK_S = 30.0


class ModelCost:
    """ONNX Runtime alone in this process, with one thread, as a server runs a quick model."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._session = Session(network.model_file.read_bytes(), device="cpu", intra_op_threads=1)

    def us_per_image(self, batch: float) -> float:
        """Return CPU microseconds per image in batches of ``batch`` images on average.

        Between whole numbers a run's cost is taken as a straight line.
        """
        least, most = math.floor(batch), math.ceil(batch)
        cost_us = self._run_us(least)
        if most > least:
            cost_us += (self._run_us(most) - cost_us) * (batch - least)
        return cost_us / batch

    def _run_us(self, batch: int) -> float:
        feeds = {IMAGE: self.network.images(batch)}
        self._session.run(_OUTPUTS, feeds)  # memory is laid out on the first run of a shape
        count = 0
        started_s = time.process_time()
        while (spent_s := time.process_time() - started_s) < _PROBE_S:
            self._session.run(_OUTPUTS, feeds)
            count += 1
        return spent_s / count * 1e6


def with_model_cost(
    measure: Callable[[], Measurement], server: ServerProcess, load: Load, cost: ModelCost
) -> Measurement:
    """Measure, and add the mean batch that foldserve formed meanwhile and ONNX Runtime's time for it.

    Raises:
        BenchError: foldserve ran nothing.
    """
    measured, batch = mean_batch(measure, server, cost.network)
    return replace(measured, batch=batch, model_us=cost.us_per_image(batch) * load.images)


def mean_batch(
    measure: Callable[[], Measurement], server: ServerProcess, network: Network
) -> tuple[Measurement, float]:
    """Measure, and return the images per execution of foldserve meanwhile beside it.

    Raises:
        BenchError: foldserve ran nothing.
    """
    images, executions = _counts(server, network)
    measured = measure()
    images_after, executions_after = _counts(server, network)
    if executions_after == executions:
        raise BenchError(f"{server.contestant} ran nothing, says its ModelStatistics")
    return measured, (images_after - images) / (executions_after - executions)


def _counts(server: ServerProcess, network: Network) -> tuple[int, int]:
    """Return the images and executions since foldserve's start."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        request = pb.ModelStatisticsRequest(name=network.name)
        (found,) = stub.ModelStatistics(request, timeout=_ASK_S).model_stats
    return found.inference_count, found.execution_count
