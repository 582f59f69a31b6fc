"""Implements grpc.health.v1; https://github.com/grpc/grpc/blob/master/doc/health-checking.md.

grpcio-health-checking has a servicer, but there the first of two watchers of one service to leave also stops
the other's notifications, and open Watch streams delay the server's end for the whole grace period.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from grpc_health.v1 import health_pb2, health_pb2_grpc

from foldserve.serving.errors import NotFoundError, UnavailableError
from foldserve.serving.server_state import ServerState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import grpc

    from foldserve.serving.server_state import Lifecycle

# Its own status says that the process answers, and nothing of models: a liveness probe asks for it, because a
# restart mends nothing that the others complain of.
HEALTH_SERVICE = "grpc.health.v1.Health"

_Status = health_pb2.HealthCheckResponse
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped
    """Answers Check and Watch. Every method runs on the event loop."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._serving: dict[str, bool] = {"": False}
        self._changed = asyncio.Event()  # replaced at each change, so that every watcher sees every change

    def publish(self, serving: Mapping[str, bool]) -> None:
        """Report which services serve from now on; others are unknown. In STOPPED, end the Watch streams."""
        self._serving = dict(serving)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: _Context) -> Any:  # noqa: N802  # the protocol's name
        """Answer the status of a service or model; raises NotFoundError if it is unknown."""
        del context
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            raise NotFoundError("no service or model has this name")
        return _Status(status=status)

    async def Watch(self, request: Any, context: _Context) -> AsyncIterator[Any]:  # noqa: N802
        """Answer the status at once and again after each change; SERVICE_UNKNOWN counts as a status.

        Raises:
            UnavailableError: the server has stopped.
        """
        del context
        sent = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != sent:
                yield _Status(status=status)
                sent = status
            if self._lifecycle.state is ServerState.STOPPED:
                raise UnavailableError("the server is draining; watch another server")
            if changed is self._changed:  # nothing changed while the caller received the last status
                await changed.wait()

    def _status(self, service: str) -> Any:
        if service == HEALTH_SERVICE:
            return _Status.SERVING
        serves = self._serving.get(service)
        if serves is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if serves else _Status.NOT_SERVING
