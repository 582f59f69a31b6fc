"""Which transport serves."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Literal, Protocol

from serving.errors import TransportMissingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serving.control import Control
    from serving.servicer import Servicer
    from serving.transport.settings import WireSettings

_log = logging.getLogger(__name__)


class Transport(Protocol):
    """What the server needs of a transport; see GrpcioTransport for each method."""

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
    grpcio_flags: Sequence[str] = (),
) -> Transport:
    """Return the transport asked for; "auto" is native where it is installed and nothing needs grpcio.

    Args:
        name: which one.
        servicer: what answers inference.
        control: what answers the rest.
        settings: limits and permissions at the wire.
        grpcio_flags: the flags given that native cannot honour; it must not be asked for with any.

    Raises:
        TransportMissingError: native was asked for and is not installed.
    """
    is_installed = importlib.util.find_spec("pygrpc_native") is not None
    if name == "native" and not is_installed:
        raise TransportMissingError(
            "transport native needs pygrpc-native: pip install 'foldserve[native]', or use --transport grpcio"
        )
    if name == "native" or (name == "auto" and is_installed and not grpcio_flags):
        assert not grpcio_flags, "the settings refuse native with flags that it cannot honour"
        from serving.transport.native import NativeTransport  # noqa: PLC0415  # an extra that may be missing

        return NativeTransport(servicer, control, settings)
    from serving.transport.grpcio import GrpcioTransport  # noqa: PLC0415  # symmetry

    if name == "auto":
        _log.info("transport grpcio: %s", _why_not_native(grpcio_flags))
    return GrpcioTransport(servicer, control, settings)


def _why_not_native(grpcio_flags: Sequence[str]) -> str:
    if grpcio_flags:
        return f"native, which is several times faster, cannot do {' and '.join(grpcio_flags)}"
    return "pygrpc-native, several times faster, is not installed (foldserve[native])"
