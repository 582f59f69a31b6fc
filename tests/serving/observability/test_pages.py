"""/healthz reports the server dead if its event loop is blocked, and only then; slow scrapes end."""

from __future__ import annotations

import asyncio
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from starlette.requests import Request

from foldserve.serving.observability import pages as pages_module
from foldserve.serving.observability.pages import Pages, Pulse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest
    from starlette.responses import Response

    from foldserve.serving.observability.metrics import Metrics

NOTHING = cast("Request", None)  # is read by /metrics alone


def test_blocked_event_loop_is_reported() -> None:
    now_s = 100.0

    async def probe() -> None:
        nonlocal now_s
        pages = Pages(None, None, Pulse(lambda: now_s))  # type: ignore[arg-type]  # not asked
        for silent_s, expected in (
            (0.0, HTTPStatus.OK),  # asks for a sign
            (29.0, HTTPStatus.OK),
            (2.0, HTTPStatus.SERVICE_UNAVAILABLE),
        ):
            now_s += silent_s
            page = await pages.live(NOTHING)  # which does not let the loop go on
            assert page.status_code == expected, page
        assert b"not responded for 31 s" in page.body
        await asyncio.sleep(0)  # the loop runs again
        for _ in range(2):
            assert (await pages.live(NOTHING)).status_code == HTTPStatus.OK

    asyncio.run(probe())


class HeldMetrics:
    """Metrics whose first rendering takes until it is released."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.accepts: list[str] = []

    def render(self, accept: str) -> tuple[bytes, str]:
        self.accepts.append(accept)
        if len(self.accepts) == 1:
            assert self.release.wait(60)
        return b"up 1\n", "text/plain; version=9"


def scrape_twice(metrics: HeldMetrics, first_receive: Callable[[], Awaitable[dict[str, Any]]]) -> Response:
    """Return the first answer; the second has to be right while the first rendering still goes on."""
    headers = [(b"accept", b"text/a"), (b"accept", b"text/b")]

    async def scrape() -> Response:
        pages = Pages(None, cast("Metrics", metrics), Pulse())  # type: ignore[arg-type]  # not asked
        first = await pages.metrics(Request({"type": "http", "headers": headers}, first_receive))
        pages_module._RENDER_LIMIT_S = 60.0
        second = await pages.metrics(Request({"type": "http", "headers": headers}, wait_for_ever))
        assert second.status_code == HTTPStatus.OK
        assert second.headers["content-type"] == "text/plain; version=9; charset=utf-8"
        assert metrics.accepts == ["text/a, text/b"] * 2
        return first

    try:
        return asyncio.run(scrape())
    finally:
        metrics.release.set()


async def wait_for_ever() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


def test_a_scrape_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "_RENDER_LIMIT_S", 0.2)
    first = scrape_twice(HeldMetrics(), wait_for_ever)
    assert first.status_code == HTTPStatus.SERVICE_UNAVAILABLE


def test_a_scraper_that_hangs_up_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "_RENDER_LIMIT_S", 3600.0)
    metrics = HeldMetrics()

    async def hang_up() -> dict[str, Any]:
        while not metrics.accepts:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    scrape_twice(metrics, hang_up)
