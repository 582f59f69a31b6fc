"""grpc.health.v1 as its specification says; https://github.com/grpc/grpc/blob/master/doc/health-checking.md.

Not grpcio-health-checking's servicer: there, the first of two watchers of one service that leaves takes the
other's notifications with it, and open Watch streams hold up the server's end for the whole grace period.
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

_Status = health_pb2.HealthCheckResponse
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped
    """Check and Watch. Every method runs on the event loop."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._serving: dict[str, bool] = {"": False}
        self._changed = asyncio.Event()  # replaced at each change, so that every watcher sees each one

    def publish(self, serving: Mapping[str, bool]) -> None:
        """Report which services serve from now on; others are unknown. In STOPPED, end the Watch streams."""
        self._serving = dict(serving)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, context: _Context) -> Any:  # noqa: N802  # the protocol's name
        """Answer the status; raises NotFoundError where there is no such service."""
        del context
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            raise NotFoundError("there is no service or model of this name")
        return _Status(status=status)

    async def Watch(self, request: Any, context: _Context) -> AsyncIterator[Any]:  # noqa: N802
        """Answer the status at once and whenever it is another; SERVICE_UNKNOWN is one, too.

        Raises:
            UnavailableError: the server has ended.
        """
        del context
        told = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                yield _Status(status=status)
                told = status
            if self._lifecycle.state is ServerState.STOPPED:
                raise UnavailableError("the server is draining; watch another")
            if changed is self._changed:  # nothing happened while the caller took the last status
                await changed.wait()

    def _status(self, service: str) -> Any:
        serves = self._serving.get(service)
        if serves is None:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if serves else _Status.NOT_SERVING
