"""/healthz reports the server dead if its event loop is blocked, and only then."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from foldserve.serving.observability.pages import Pages, Pulse


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
            page = await pages.live("")  # which does not let the loop go on
            assert page.status == expected, page
        assert b"not responded for 31 s" in page.content
        await asyncio.sleep(0)  # the loop runs again
        for _ in range(2):
            assert (await pages.live("")).status == HTTPStatus.OK

    asyncio.run(probe())
