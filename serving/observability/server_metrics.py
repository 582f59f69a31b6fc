"""The metrics of the server itself: what it is, whether it is ready, and what it takes of the machine."""

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
    """Asked of their owners when a scrape comes.

    Args:
        management: what knows whether the server is ready.
        inference: what knows how much waits to be decoded.
        lifecycle: the server's state.
        port: that gRPC's connections come in by.
        transport: its name.
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
            "What runs here.",
            labels=("version", "onnxruntime", "python", "transport"),
        )
        build.add_metric((own_version(), RUNTIME_VERSION, platform.python_version(), self._transport), 1)
        yield build
        gauges = {
            "foldserve_ready": ("1 where the server takes inference.", int(self._management.is_ready())),
            "foldserve_draining": ("1 from SIGTERM on.", int(self._lifecycle.is_leaving)),
            "foldserve_usable_processors": (
                "Processors that affinity and quota leave to this process.",
                usable_cpus(),
            ),
            "foldserve_threads": ("Threads of this process, all libraries' together.", thread_count()),
            "foldserve_connections": ("Connections to the gRPC port.", connection_count(self._port)),
            "foldserve_decoding_bytes": (
                "Bytes of encoded images, with their pixels, that wait to be decoded.",
                self._inference.decoding_bytes,
            ),
        }
        for name, (text, value) in gauges.items():
            if value is not None:
                yield GaugeMetricFamily(name, text, value=value)
