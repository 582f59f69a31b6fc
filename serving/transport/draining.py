"""Decides when a draining transport may close."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Long enough for calls in transit to arrive and be refused with a status; short compared to any restart.
_QUIET_S = 0.2
# Callers that retry at once would keep the transport busy for ever; after this they find the port closed.
_PATIENCE_S = 1.0


async def wait_until_idle(
    has_pending: Callable[[], bool], last_call_s: Callable[[], float], give_up_s: float
) -> None:
    """Wait until no accepted request is pending and no call has come for a moment, or until ``give_up_s``.

    ``last_call_s`` returns when the last call came. Times are on time.monotonic's clock.
    """
    idle_since_s = now_s = time.monotonic()
    while now_s < give_up_s:
        await asyncio.sleep(_QUIET_S / 10)
        now_s = time.monotonic()
        if has_pending():
            idle_since_s = now_s
        elif now_s - max(idle_since_s, last_call_s()) >= _QUIET_S or now_s - idle_since_s >= _PATIENCE_S:
            return
