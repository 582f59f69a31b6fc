"""Which transport serves."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Literal, Protocol

from serving.errors import TransportMissingError

if TYPE_CHECKING:
    from serving.control import Control
    from serving.servicer import Servicer

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
    *,
    max_message_bytes: int,
) -> Transport:
    """Return the transport asked for; "auto" is native where it is installed.

    Raises:
        TransportMissingError: native was asked for and is not installed.
    """
    if name != "grpcio" and importlib.util.find_spec("pygrpc_native") is not None:
        from serving.transport.native import NativeTransport  # noqa: PLC0415  # an extra that may be missing

        return NativeTransport(servicer, control, max_message_bytes=max_message_bytes)
    if name == "native":
        raise TransportMissingError(
            "transport native needs pygrpc-native: pip install 'foldserve[native]', or use --transport grpcio"
        )
    from serving.transport.grpcio import GrpcioTransport  # noqa: PLC0415  # symmetry

    if name == "auto":
        _log.info(
            "transport grpcio: pygrpc-native, several times faster, is not installed (foldserve[native])"
        )
    return GrpcioTransport(servicer, control, max_message_bytes=max_message_bytes)
