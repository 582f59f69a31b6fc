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


# Longer than anything holds up an event loop on a machine that is merely busy.
_SILENT_S = 30.0


class Pulse:
    """Tells from another thread whether an event loop runs. Made on that loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._asked_s: float | None = None

    def silent_s(self) -> float:
        """Return how long the loop has owed a sign; it is asked for one where it owes none."""
        if self._asked_s is None:
            self._asked_s = self._clock()
            self._loop.call_soon_threadsafe(self._beat)
            return 0.0
        return self._clock() - self._asked_s

    def _beat(self) -> None:
        self._asked_s = None


class Pages:
    """Makes them. Every method runs on the HTTP endpoint's event loop."""

    def __init__(self, management: ManagementService, metrics: Metrics, pulse: Pulse) -> None:
        self._management = management
        self._metrics = metrics
        self._pulse = pulse
        self._scraping = asyncio.Lock()

    def by_path(self) -> dict[str, PageMaker]:
        """Return what makes each page."""
        return {"/healthz": self.live, "/readyz": self.ready, "/metrics": self.metrics}

    async def live(self, _: str) -> Page:
        """Say whether the process answers; a restart would mend nothing that /readyz complains of."""
        if (silent_s := self._pulse.silent_s()) > _SILENT_S:
            text = f"the event loop has given no sign for {silent_s:.0f} s\n"
            return Page(HTTPStatus.SERVICE_UNAVAILABLE, text.encode())
        return Page(HTTPStatus.OK, b"live\n")

    async def ready(self, _: str) -> Page:
        """Say whether the server takes inference, and what does not serve."""
        reasons = self._management.unready_reasons()
        lines = ["ready"] if not reasons else [f"not ready: {reason}" for reason in reasons]
        lines += [f"{name}/{version}: {reason}" for name, version, reason in self._management.not_serving()]
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        return Page(status, "".join(f"{line}\n" for line in lines).encode())

    async def metrics(self, accept: str) -> Page:
        """Make what Prometheus scrapes; one scrape at a time, and not on the event loop."""
        async with self._scraping:
            content, content_type = await run_in_thread(lambda: self._metrics.render(accept), "metrics")
        return Page(HTTPStatus.OK, content, content_type)
