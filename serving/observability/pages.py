"""The pages of the HTTP endpoint: /healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from foldserve.serving.background import run_in_thread
from foldserve.serving.observability.http_endpoint import Page

if TYPE_CHECKING:
    from collections.abc import Callable

    from foldserve.serving.observability.http_endpoint import PageMaker
    from foldserve.serving.observability.metrics import Metrics
    from foldserve.serving.services.management import ManagementService


# Longer than anything blocks the event loop on a machine that is merely busy.
_SILENT_S = 30.0


class Pulse:
    """Checks from another thread whether an event loop runs. Create it on that loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._asked_s: float | None = None

    def silent_s(self) -> float:
        """Return for how many seconds the loop has not responded; asks it to respond if it had."""
        if self._asked_s is None:
            self._asked_s = self._clock()
            self._loop.call_soon_threadsafe(self._beat)
            return 0.0
        return self._clock() - self._asked_s

    def _beat(self) -> None:
        self._asked_s = None


class Pages:
    """Makes the pages. Every method runs on the HTTP endpoint's event loop."""

    def __init__(self, management: ManagementService, metrics: Metrics, pulse: Pulse) -> None:
        self._management = management
        self._metrics = metrics
        self._pulse = pulse
        self._scraping = asyncio.Lock()

    def by_path(self) -> dict[str, PageMaker]:
        """Return the function that makes each page."""
        return {"/healthz": self.live, "/readyz": self.ready, "/metrics": self.metrics}

    async def live(self, _: str) -> Page:
        """Report whether the server is live: restart it if not. It may be live and not ready."""
        if (silent_s := self._pulse.silent_s()) > _SILENT_S:
            text = f"the event loop has not responded for {silent_s:.0f} s\n"
            return Page(HTTPStatus.SERVICE_UNAVAILABLE, text.encode())
        return Page(HTTPStatus.OK, b"live\n")

    async def ready(self, _: str) -> Page:
        """Report whether the server is ready, and the versions that do not serve."""
        reasons = self._management.unready_reasons()
        lines = ["ready"] if not reasons else [f"not ready: {reason}" for reason in reasons]
        lines += [f"{name}/{version}: {reason}" for name, version, reason in self._management.not_serving()]
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        return Page(status, "".join(f"{line}\n" for line in lines).encode())

    async def metrics(self, accept: str) -> Page:
        """Render the metrics: one scrape at a time, in a thread of its own."""
        async with self._scraping:
            content, content_type = await run_in_thread(lambda: self._metrics.render(accept), "metrics")
        return Page(HTTPStatus.OK, content, content_type)
