"""Collects the metrics of models: requests, executions, queues, loads.

Labels are the repository's models and versions, the protocol's methods and gRPC's statuses, never a caller's
text: a request for an unknown model is counted under the model "".
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from foldserve.serving.observability.counter_history import CounterHistory, LoadCounts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import Metric

    from foldserve.serving.model.counters import Counters, Histogram
    from foldserve.serving.model.served_model import ServedModel
    from foldserve.serving.repository.index import ModelIndex
    from foldserve.serving.services.inference import InferenceService

_MODEL = ("model", "version")
# Reasons for requests that were never run, by status.
_DROPPED = {"DEADLINE_EXCEEDED": "expired", "CANCELLED": "cancelled", "RESOURCE_EXHAUSTED": "rejected"}


class ModelMetrics(Collector):
    """Reads the counters at each scrape, so that requests pay nothing for it.

    Args:
        index: the models.
        inference: counts the requests that reach no version.
        loads: counts the load attempts.
    """

    def __init__(self, index: ModelIndex, inference: InferenceService, loads: LoadCounts) -> None:
        self._index = index
        self._inference = inference
        self._loads = loads
        self._history = CounterHistory()

    def note_changes(self) -> None:
        """Keep the counters of the models that serve now. Call it after each change, from any thread."""
        self._history.note(self._index.ready_models())

    def answered_count(self) -> int:
        """Return how many requests were answered OK."""
        self.note_changes()
        counters = self._history.counters().values()
        return sum(counter.total_s.count for counter in counters)

    def collect(self) -> Iterator[Metric]:
        """Yield the families, each with all its models."""
        self.note_changes()
        counters = self._history.counters()
        refused = {
            (name, ""): statistics.counters() for name, statistics in list(self._inference.refused.items())
        }
        yield from _requests(counters | refused)
        yield from _executions(counters)
        yield from _durations(counters)
        yield from _serving(self._index.ready_models())
        yield self._readiness()
        yield from self._load_attempts()

    def _readiness(self) -> Metric:
        ready = GaugeMetricFamily(
            "foldserve_model_ready", "1 if the version serves, 0 if it loads or was refused.", labels=_MODEL
        )
        for entry in self._index.entries():
            ready.add_metric((entry.name, str(entry.version)), entry.state == "READY")
        return ready

    def _load_attempts(self) -> Iterator[Metric]:
        loads = CounterMetricFamily(
            "foldserve_model_loads",
            "Load attempts that ended: ready or refused.",
            labels=("model", "outcome"),
        )
        for names, count in self._loads.by_outcome().items():
            loads.add_metric(names, count)
        seconds = HistogramMetricFamily(
            "foldserve_model_load_duration_seconds", "Time that load attempts took.", labels=("model",)
        )
        for name, histogram in self._loads.seconds().items():
            _add_histogram(seconds, (name,), histogram)
        yield from (loads, seconds)


def _requests(counters: dict[tuple[str, str], Counters]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "foldserve_requests",
        "Requests by gRPC status and method (ModelInfer, Classify, ModelStreamInfer or ClassifyStream); the "
        "label version is empty for requests that reached no version.",
        labels=(*_MODEL, "method", "code"),
    )
    dropped = CounterMetricFamily(
        "foldserve_requests_dropped",
        "Requests that never ran: expired (DEADLINE_EXCEEDED), cancelled (CANCELLED), or rejected "
        "(RESOURCE_EXHAUSTED: the queue is full, or the request too large).",
        labels=(*_MODEL, "reason"),
    )
    for names, counter in counters.items():
        by_reason = Counter(dict.fromkeys(_DROPPED.values(), 0))
        for (method, code), count in sorted(counter.requests.items()):
            requests.add_metric((*names, method, code), count)
            if code in _DROPPED:
                by_reason[_DROPPED[code]] += count
        for reason, count in by_reason.items():
            dropped.add_metric((*names, reason), count)
    yield from (requests, dropped)


def _executions(counters: dict[tuple[str, str], Counters]) -> Iterator[Metric]:
    rows = CounterMetricFamily("foldserve_rows", "Rows (images) that the model has run.", labels=_MODEL)
    executions = CounterMetricFamily("foldserve_executions", "Executions that succeeded.", labels=_MODEL)
    sizes = HistogramMetricFamily("foldserve_execution_rows", "Rows per execution.", labels=_MODEL)
    for names, counter in counters.items():
        rows.add_metric(names, counter.batch_rows.total)
        executions.add_metric(names, counter.batch_rows.count)
        _add_histogram(sizes, names, counter.batch_rows)
    yield from (rows, executions, sizes)


def _durations(counters: dict[tuple[str, str], Counters]) -> Iterator[Metric]:
    queue = HistogramMetricFamily(
        "foldserve_queue_duration_seconds",
        "Time from a request's arrival in the queue to its first execution.",
        labels=_MODEL,
    )
    compute = HistogramMetricFamily(
        "foldserve_compute_duration_seconds", "Time that an execution took.", labels=_MODEL
    )
    total = HistogramMetricFamily(
        "foldserve_request_duration_seconds",
        "Time from a request's arrival to its answer, decoding of images included, of requests answered OK.",
        labels=_MODEL,
    )
    for names, counter in counters.items():
        _add_histogram(queue, names, counter.queue_s)
        _add_histogram(compute, names, counter.compute_s)
        _add_histogram(total, names, counter.total_s)
    yield from (queue, compute, total)


def _serving(models: Sequence[ServedModel]) -> Iterator[Metric]:
    requests = GaugeMetricFamily("foldserve_pending_requests", "Requests that wait.", labels=_MODEL)
    rows = GaugeMetricFamily("foldserve_pending_rows", "Rows (images) that wait.", labels=_MODEL)
    threads = GaugeMetricFamily(
        "foldserve_model_threads", "Threads that one execution may use.", labels=_MODEL
    )
    instances = GaugeMetricFamily(
        "foldserve_model_instances", "Executions that may run at the same time.", labels=_MODEL
    )
    info = GaugeMetricFamily(
        "foldserve_model_info",
        "The served versions: hash of the model file, execution provider, precision, batch invariance.",
        labels=(*_MODEL, "sha256", "provider", "precision", "batch_invariant"),
    )
    for model in models:
        names = (model.name, model.version_text)
        waiting_requests, waiting_rows = model.waiting()
        requests.add_metric(names, waiting_requests)
        rows.add_metric(names, waiting_rows)
        threads.add_metric(names, model.verified.threads)
        instances.add_metric(names, model.instance_count + model.overflow_count)
        verified = model.verified
        facts = (verified.sha256, verified.session.provider, verified.precision)
        info.add_metric((*names, *facts, "true" if verified.batch_invariant else "false"), 1)
    yield from (requests, rows, threads, instances, info)


def _add_histogram(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total)
