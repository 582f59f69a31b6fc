"""Collects the metrics of the server itself: build, readiness, use of the machine."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.session import RUNTIME_VERSION
from foldserve.serving.observability.process_figures import connection_count, thread_count
from foldserve.serving.services.management import own_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from foldserve.serving.server_state import Lifecycle
    from foldserve.serving.services.inference import InferenceService
    from foldserve.serving.services.management import ManagementService


class ServerMetrics(Collector):
    """Reads the server's gauges at each scrape.

    Args:
        management: knows whether the server is ready.
        inference: knows how many bytes wait to be decoded.
        lifecycle: the server's state.
        port: the gRPC port.
        transport: the transport's name.
    """

    def __init__(
        self,
        management: ManagementService,
        inference: InferenceService,
        lifecycle: Lifecycle,
        *,
        port: int,
        transport: str,
    ) -> None:
        self._management = management
        self._inference = inference
        self._lifecycle = lifecycle
        self._port = port
        self._transport = transport

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        build = GaugeMetricFamily(
            "foldserve_build_info",
            "Versions of the software that runs here.",
            labels=("version", "onnxruntime", "python", "transport"),
        )
        build.add_metric((own_version(), RUNTIME_VERSION, platform.python_version(), self._transport), 1)
        yield build
        gauges = {
            "foldserve_ready": (
                "1 if the server is ready for inference, as /readyz says.",
                int(self._management.is_ready()),
            ),
            "foldserve_draining": ("1 after SIGTERM.", int(self._lifecycle.is_leaving)),
            "foldserve_usable_processors": (
                "CPUs that this process may use, by affinity and quota.",
                usable_cpus(),
            ),
            "foldserve_threads": ("Threads of this process, including those of libraries.", thread_count()),
            "foldserve_connections": ("Connections to the gRPC port.", connection_count(self._port)),
            "foldserve_decoding_bytes": (
                "Bytes of the images that wait to be decoded, encoded and decoded together.",
                self._inference.decoding_bytes,
            ),
        }
        for name, (text, value) in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(name, text, value=value)
