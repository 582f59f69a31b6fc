"""When a draining transport may close."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Long enough for calls that are on their way to arrive and be refused properly, short beside any restart.
_QUIET_S = 0.2
# Callers that try again at once keep it from ever being quiet; they are left to find the port closed.
_PATIENCE_S = 1.0


async def wait_until_idle(
    has_pending: Callable[[], bool], last_call_s: Callable[[], float], give_up_s: float
) -> None:
    """Return once nothing accepted is unanswered and no call has come for a moment, or at ``give_up_s``.

    ``last_call_s`` tells when the last call came, to be refused. Times are on time.monotonic's clock.
    """
    idle_since_s = now_s = time.monotonic()
    while now_s < give_up_s:
        await asyncio.sleep(_QUIET_S / 10)
        now_s = time.monotonic()
        if has_pending():
            idle_since_s = now_s
        elif now_s - max(idle_since_s, last_call_s()) >= _QUIET_S or now_s - idle_since_s >= _PATIENCE_S:
            return
