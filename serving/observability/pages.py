"""The pages of the metrics port: /healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse, Response

from foldserve.serving.background import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from foldserve.serving.observability.metrics import Metrics
    from foldserve.serving.services.management import ManagementService


# Longer than anything blocks the event loop on a machine that is merely busy.
_SILENT_S = 30.0
# Longer than it takes to render the metrics of many models, some 100 kB, on a busy machine.
_RENDER_LIMIT_S = 10.0


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
    """Makes the pages. Every method runs on the event loop of the metrics port."""

    def __init__(self, management: ManagementService, metrics: Metrics, pulse: Pulse) -> None:
        self._management = management
        self._metrics = metrics
        self._pulse = pulse
        self._scraping = asyncio.Lock()

    def by_path(self) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        """Return the function that makes each page."""
        return {"/healthz": self.live, "/readyz": self.ready, "/metrics": self.metrics}

    async def live(self, _: Request) -> Response:
        """Report whether the server is live: restart it if not. It may be live and not ready."""
        if (silent_s := self._pulse.silent_s()) > _SILENT_S:
            text = f"the event loop has not responded for {silent_s:.0f} s\n"
            return PlainTextResponse(text, HTTPStatus.SERVICE_UNAVAILABLE)
        return PlainTextResponse("live\n")

    async def ready(self, _: Request) -> Response:
        """Report whether the server is ready, and the versions that do not serve."""
        reasons = self._management.unready_reasons()
        lines = ["ready"] if not reasons else [f"not ready: {reason}" for reason in reasons]
        lines += [f"{name}/{version}: {reason}" for name, version, reason in self._management.not_serving()]
        status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
        return PlainTextResponse("".join(f"{line}\n" for line in lines), status)

    async def metrics(self, request: Request) -> Response:
        """Render the metrics, in a thread of its own: one scrape at a time, as long as the caller waits."""
        rendering = asyncio.ensure_future(self._render(", ".join(request.headers.getlist("accept"))))
        gone = asyncio.ensure_future(_hang_up(request))
        try:
            await asyncio.wait(
                (rendering, gone), timeout=_RENDER_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if rendering.done():
                content, content_type = rendering.result()
                return Response(content, media_type=content_type)
        finally:
            rendering.cancel()
            gone.cancel()
        text = f"the metrics took longer than {_RENDER_LIMIT_S:.0f} s\n"
        return PlainTextResponse(text, HTTPStatus.SERVICE_UNAVAILABLE)

    async def _render(self, accept: str) -> tuple[bytes, str]:
        async with self._scraping:
            return await run_in_thread(lambda: self._metrics.render(accept), "metrics")


async def _hang_up(request: Request) -> None:
    """Return once the caller has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
