"""Describes the metrics, from the collectors that a scrape asks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import PlatformCollector, ProcessCollector
from prometheus_client.registry import CollectorRegistry

from docsite.reference.markdown import code, head, table
from foldserve.serving.observability.counter_history import LoadCounts
from foldserve.serving.observability.model_metrics import ModelMetrics
from foldserve.serving.observability.server_metrics import ServerMetrics
from foldserve.serving.repository.index import ModelIndex

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

_TEXT = """\
`http://HOST:8002/metrics` is for Prometheus, as text or, if the scraper asks for it, as
OpenMetrics. Labels come from the repository, the protocol and gRPC's statuses, never from
callers. What is worth an alert: [Metrics](../operations.md#metrics)."""


def page() -> str:
    """Return the page."""
    # A server that serves nothing: names, texts and labels do not depend on what is served.
    nothing: Any = SimpleNamespace(refused={}, decoding_bytes=0, is_ready=lambda: False, is_leaving=False)
    models = ModelMetrics(ModelIndex(), nothing, LoadCounts())
    server = ServerMetrics(nothing, nothing, nothing, port=1, transport="grpcio")
    registry = CollectorRegistry()
    process = ProcessCollector(registry=registry), PlatformCollector(registry=registry)
    return "\n".join(
        [
            head("Metrics", _TEXT),
            "## Models\n",
            _table(models.collect()),
            "Durations have buckets from 50 us to 10 s. The counters of the last 64 versions that no longer",
            "serve are kept, and counting goes on when a version is loaded again.\n",
            "## The server\n",
            _table(server.collect()),
            "## The process\n",
            "From the library `prometheus_client`:\n",
            _table(family for collector in process for family in collector.collect()),
        ]
    )


def _table(families: Iterable[Metric]) -> str:
    rows = [(_name(each), each.type, _labels(each), each.documentation) for each in families]
    return table(("metric", "type", "labels", "meaning"), rows)


def _name(family: Metric) -> str:
    return code(f"{family.name}_total" if family.type == "counter" else family.name)


def _labels(family: Metric) -> str:
    return ", ".join(cast("Any", family)._labelnames)  # the library has no other way
