"""The pages of the HTTP endpoint: /healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from serving.background import run_in_thread
from serving.http_endpoint import Page

if TYPE_CHECKING:
    from serving.control import Control
    from serving.http_endpoint import PageMaker
    from serving.metrics import Metrics


class Pages:
    """Makes them. Every method runs on the event loop."""

    def __init__(self, control: Control, metrics: Metrics) -> None:
        self._control = control
        self._metrics = metrics
        self._scraping = asyncio.Lock()

    def by_path(self) -> dict[str, PageMaker]:
        """Return what makes each page."""
        return {"/healthz": self.live, "/readyz": self.ready, "/metrics": self.metrics}

    async def live(self, _: str) -> Page:
        """Say that the process answers; a restart would mend nothing that /readyz complains of."""
        return Page(HTTPStatus.OK, b"live\n")

    async def ready(self, _: str) -> Page:
        """Say whether the server takes inference, and what does not serve."""
        reasons = self._control.unready_reasons()
        lines = ["ready"] if not reasons else [f"not ready: {reason}" for reason in reasons]
        lines += [f"{name}/{version}: {reason}" for name, version, reason in self._control.not_serving()]
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        return Page(status, "".join(f"{line}\n" for line in lines).encode())

    async def metrics(self, accept: str) -> Page:
        """Make what Prometheus scrapes; one scrape at a time, and not on the event loop."""
        async with self._scraping:
            content, content_type = await run_in_thread(lambda: self._metrics.render(accept), "metrics")
        return Page(HTTPStatus.OK, content, content_type)
