"""Which transport serves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, Protocol

from serving.errors import TransportMissingError
from serving.transport.grpcio import GrpcioTransport

if TYPE_CHECKING:
    from serving.control import Control
    from serving.servicer import Servicer
    from serving.transport.settings import WireSettings

_log = logging.getLogger(__name__)


class Transport(Protocol):
    """What the server needs of a transport; see GrpcioTransport for each method."""

    name: str

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port."""

    async def publish_health(self) -> None:
        """Publish what serves now."""

    async def enter_shutdown(self) -> None:
        """Publish NOT_SERVING for good."""

    async def stop(self, grace_s: float) -> None:
        """Finish what runs and close."""


def open_transport(
    name: Literal["auto", "grpcio", "native"],
    servicer: Servicer,
    control: Control,
    settings: WireSettings,
    *,
    why_not_native: str | None = None,
) -> Transport:
    """Return the transport asked for; "auto" is native where that works here and nothing speaks against it.

    Args:
        name: which one.
        servicer: what answers inference.
        control: what answers the rest.
        settings: limits and permissions at the wire.
        why_not_native: what makes "auto" take grpcio, as logged; `ServeConfig.why_not_native`.

    Raises:
        TransportMissingError: native was asked for and does not work here.
    """
    if name == "auto" and why_not_native is not None:
        _log.info("transport grpcio: %s", why_not_native)
    elif name != "grpcio":
        try:
            return _open_native(servicer, control, settings)
        except TransportMissingError as error:
            if name == "native":
                raise
            _log.info("transport grpcio: %s", error)
    return GrpcioTransport(servicer, control, settings)


def _open_native(servicer: Servicer, control: Control, settings: WireSettings) -> Transport:
    try:
        from serving.transport.native import NativeTransport  # noqa: PLC0415  # an extra that may be missing
    except ImportError as error:
        raise TransportMissingError(
            f"native, several times faster, needs pygrpc-native, which cannot be imported here ({error}): "
            "pip install 'foldserve[native]', or use --transport grpcio"
        ) from error
    return NativeTransport(servicer, control, settings)
