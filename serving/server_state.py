"""Holds the life cycle of the server: STARTING -> READY -> LEAVING -> DRAINING -> STOPPED.

A signal during start-up leads from STARTING to LEAVING. An error leads from any of the first three states to
DRAINING.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum


class ServerState(IntEnum):
    """The states of a server; a later state has a higher value.

    Attributes:
        STARTING: loads the models. Calls are answered, for each model once it serves.
        READY: has loaded the models that it started with.
        LEAVING: reports NOT_SERVING, and answers calls for as long as load balancers need to notice.
        DRAINING: refuses new inference, and finishes the requests that it accepted.
        STOPPED: has finished them, and closes its connections.
    """

    STARTING = 0
    READY = 1
    LEAVING = 2
    DRAINING = 3
    STOPPED = 4


_NEXT_STATES: dict[ServerState, set[ServerState]] = {
    ServerState.STARTING: {ServerState.READY, ServerState.LEAVING, ServerState.DRAINING},
    ServerState.READY: {ServerState.LEAVING, ServerState.DRAINING},
    ServerState.LEAVING: {ServerState.DRAINING},
    ServerState.DRAINING: {ServerState.STOPPED},
    ServerState.STOPPED: set(),
}


class Lifecycle:
    """Holds the state of a server. `serving.server` changes it; any thread may read it."""

    def __init__(self) -> None:
        self._state = ServerState.STARTING
        self._entered = {state: asyncio.Event() for state in ServerState}
        self._entered[self._state].set()

    @property
    def state(self) -> ServerState:
        """The current state."""
        return self._state

    @property
    def has_loaded(self) -> bool:
        """Whether the models that the server started with were loaded, also if it is leaving by now."""
        return self._entered[ServerState.READY].is_set()

    @property
    def is_leaving(self) -> bool:
        """Whether the server is shutting down: nothing is ready from LEAVING on."""
        return self._state >= ServerState.LEAVING

    @property
    def refuses_inference(self) -> bool:
        """Whether new inference is refused: from DRAINING on."""
        return self._state >= ServerState.DRAINING

    def enter(self, state: ServerState) -> None:
        """Change to ``state``. Runs on the event loop that waits for it.

        Raises:
            ValueError: the current state does not lead to ``state``.
        """
        if state not in _NEXT_STATES[self._state]:
            raise ValueError(f"a server that is {self._state.name} cannot become {state.name}")
        self._state = state
        self._entered[state].set()

    async def wait_for(self, state: ServerState) -> None:
        """Wait until the server has entered ``state``."""
        await self._entered[state].wait()
