"""Defines what the server needs of a transport, and chooses one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, Protocol

from foldserve.serving.errors import TransportMissingError
from foldserve.serving.transport.grpcio.server import GrpcioTransport

if TYPE_CHECKING:
    from foldserve.serving.transport.backend import Backend
    from foldserve.serving.transport.settings import WireSettings

_log = logging.getLogger(__name__)


class Transport(Protocol):
    """A gRPC server; see `GrpcioTransport` for each method."""

    name: str

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port."""

    async def publish_health(self) -> None:
        """Publish which models serve now."""

    async def drain(self, give_up_s: float) -> None:
        """Wait until the running calls are answered, at most until ``give_up_s``."""

    async def close(self) -> None:
        """Close the connections."""


def open_transport(
    name: Literal["auto", "grpcio", "native"],
    backend: Backend,
    settings: WireSettings,
    *,
    why_not_native: str | None = None,
) -> Transport:
    """Return the requested transport; "auto" is native if it works here and no setting excludes it.

    Args:
        name: the transport.
        backend: answers the calls.
        settings: limits and permissions at the wire.
        why_not_native: why "auto" chooses grpcio, for the log; see `ServeConfig.why_not_native`.

    Raises:
        TransportMissingError: native was requested and does not work here.
    """
    if name == "auto" and why_not_native is not None:
        _log.info("transport grpcio: %s", why_not_native)
    elif name != "grpcio":
        try:
            return _open_native(backend, settings)
        except TransportMissingError as error:
            if name == "native":
                raise
            _log.info("transport grpcio: %s", error)
    return GrpcioTransport(backend, settings)


def _open_native(backend: Backend, settings: WireSettings) -> Transport:
    try:
        from foldserve.serving.transport.native import NativeTransport  # noqa: PLC0415  # an extra that may be missing
    except ImportError as error:
        raise TransportMissingError(
            f"native, several times faster, needs pygrpc-native, which cannot be imported here ({error}): "
            "run pip install 'foldserve[native]', or use --transport grpcio"
        ) from error
    return NativeTransport(backend, settings)
