"""Renders the metrics that Prometheus scrapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from foldserve.serving.observability.model_metrics import ModelMetrics
    from foldserve.serving.observability.server_metrics import ServerMetrics


class Metrics:
    """Renders the metrics of a registry of its own, which holds nothing else of the process."""

    def __init__(self, models: ModelMetrics, server: ServerMetrics) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(models)
        self._registry.register(server)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type: OpenMetrics if ``accept`` asks for it, else Prometheus."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
