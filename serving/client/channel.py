"""Opens the channel of both clients: its options, TLS, the token, and the error if nothing answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import grpc

from foldserve.serving.client.reachability import explain_unreached
from foldserve.serving.errors import CredentialsError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from foldserve.serving.client.connection_config import ConnectionConfig

Metadata: TypeAlias = "tuple[tuple[str, str], ...]"

_RETRIED = (
    {"service": "inference.GRPCInferenceService", "method": "ModelInfer"},
    {"service": "inference.GRPCInferenceService", "method": "ModelMetadata"},
    {"service": "foldserve.v1.Classifier", "method": "Classify"},
)
_SERVICE_CONFIG = {
    # If a name has several addresses, as in a cluster, use all of them.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": _RETRIED,
            # A server that drains or restarts is back, or replaced, within about a second.
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_CHANNEL_OPTIONS: Sequence[tuple[str, Any]] = (
    # The server limits message sizes, not the client.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC obeys http_proxy, but a server on this machine or in a cluster is rarely behind that proxy.
    ("grpc.enable_http_proxy", 0),
    # Notices a connection that died silently while a call waits for its answer.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Within the time that a call is tried again. Where connecting fails, as to a server that is ending, gRPC
    # would wait a second before the next try, and fail all calls until then.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
)

# How long a first call is tried after connecting has timed out: the server may be there by then.
ASK_WHY_S = 0.5


class ConnectionOptions(TypedDict, total=False):
    """Optional arguments of the clients: TLS and the token.

    Attributes:
        tls: use TLS; trust the public certificate authorities unless ``tls_ca`` is given.
        tls_ca: PEM file with the certificate authorities to trust; enables TLS.
        tls_cert, tls_key: PEM files with the client's own certificate (mutual TLS); enables TLS.
        token: the bearer token.
    """

    tls: bool
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    token: str | None


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Checked ConnectionOptions. The token is left out of the repr."""

    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check what can be checked without a server.

        Raises:
            CredentialsError: a certificate without its key, or a token with characters that no header allows.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise CredentialsError("tls_cert and tls_key belong together: give both")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token):
            raise CredentialsError("the token is empty or has characters other than printable ASCII")

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    @property
    def metadata(self) -> Metadata:
        """Metadata that every call sends: the token, if there is one."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def open(self, server: str) -> grpc.Channel:
        """Return a channel to ``server``, "HOST:PORT"; raises CredentialsError if a file is unreadable."""
        if not self.is_encrypted:
            return grpc.insecure_channel(server, options=_options(server))
        return grpc.secure_channel(server, self._credentials(), options=_options(server))

    def open_aio(self, server: str) -> grpc.aio.Channel:
        """Return a channel for asyncio; raises as `open`."""
        if not self.is_encrypted:
            return grpc.aio.insecure_channel(server, options=_options(server))
        return grpc.aio.secure_channel(server, self._credentials(), options=_options(server))

    def explain(self, server: str) -> UnavailableError:
        """Try to connect step by step and return why it fails; takes some seconds at worst."""
        if reason := explain_unreached(server, self):
            return UnavailableError(f"cannot talk to the server at {server}: {reason}")
        return UnavailableError(
            f"no server answers at {server}; start one with `foldserve serve`, or name another with --server"
        )

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            root_certificates=_read_bytes(self.tls_ca),
            private_key=_read_bytes(self.tls_key),
            certificate_chain=_read_bytes(self.tls_cert),
        )


def is_unreached(error: grpc.RpcError) -> bool:
    """Tell whether a call failed before it reached a server."""
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def connection_options(config: ConnectionConfig) -> ConnectionOptions:
    """Return the connection options in a command's flags.

    Raises:
        CredentialsError: the token's file cannot be read.
    """
    token = config.token
    if config.token_file is not None:
        content = _read_bytes(config.token_file) or b""
        token = content.decode("utf-8", "replace").strip()
    return ConnectionOptions(
        tls=config.tls,
        tls_ca=config.tls_ca,
        tls_cert=config.tls_cert,
        tls_key=config.tls_key,
        token=token,
    )


def _options(server: str) -> Sequence[tuple[str, Any]]:
    if "," not in server:
        return _CHANNEL_OPTIONS
    # gRPC would send the whole list as the calls' authority, which must be one HOST:PORT. Strict servers,
    # such as our native transport, reset such calls.
    first = server.removeprefix("ipv4:").removeprefix("ipv6:").partition(",")[0]
    return (*_CHANNEL_OPTIONS, ("grpc.default_authority", first))


def _read_bytes(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error.strerror}") from error
