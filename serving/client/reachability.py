"""Finds out why a server cannot be reached, step by step: TCP, TLS, HTTP/2.

gRPC's own messages do not tell reliably: after a retry they may be about something else, or missing.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Time limit per step; enough for a TLS handshake around the world.
_STEP_S = 3.0
# An HTTP/2 client starts with its preface and empty settings. A server's first frame is a settings frame too.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_FRAME_HEAD_BYTES = 9

_NO_FILES = (
    "the files given with --tls-ca, --tls-cert and --tls-key are not PEM, or the key is not the certificate's"
)
_NOT_TRUSTED = "its certificate is not signed by a trusted authority; give --tls-ca"
_NO_TLS = "it does not speak TLS; leave out --tls and --tls-ca, or enable TLS on the server"
_WANTS_TLS = "it speaks TLS; give --tls-ca (or --tls)"
_WANTS_CERTIFICATE = (
    "it closed the connection; if it requires a client certificate (mutual TLS), give --tls-cert and "
    "--tls-key, signed by an authority that it trusts"
)
_NO_GRPC = "what answers there does not speak gRPC (HTTP/2); is the port right?"
_NO_ANSWER = "it accepts connections but answers no calls"
_NOT_TRUSTED_BY_GRPC = (
    "its certificate is signed by an authority that gRPC does not trust by default; give --tls-ca"
)
# OpenSSL's error codes for a certificate; all others are about who signed it.
_VERDICTS = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired; install a new one on the server",
    62: "its certificate is for another name; connect by the name in the certificate",
    64: "its certificate is for another name; connect by the name in the certificate",
}


class TlsFiles(Protocol):
    """How a connection is encrypted, if it is: the files of `channel.Connection`."""

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken."""

    @property
    def tls_ca(self) -> Path | None:
        """PEM file of the authorities that are trusted; None for the well-known ones."""

    @property
    def tls_cert(self) -> Path | None:
        """PEM file of the client's certificate, if it has one."""

    @property
    def tls_key(self) -> Path | None:
        """PEM file of that certificate's private key."""


def explain_unreached(server: str, connection: TlsFiles) -> str:
    """Return why a channel to ``server`` failed, or "" if nothing accepts a connection there."""
    reasons = (_try(host, port, connection) for host, port in _addresses(server))
    return next((reason for reason in reasons if reason), "")


def _addresses(server: str) -> Iterator[tuple[str, int]]:
    """Yield the hosts and ports of a gRPC target; nothing for other targets, such as a socket's path."""
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        server = server.removeprefix(scheme)
    for address in server.split(","):
        host, _, port = address.rpartition(":")
        if host and port.isdecimal():
            yield host.strip("[]"), int(port)


def _try(host: str, port: int, connection: TlsFiles) -> str:
    try:
        with socket.create_connection((host, port), timeout=_STEP_S) as plain:
            if connection.is_encrypted:
                return _try_tls(plain, host, connection)
            if _speaks_http2(plain):
                return _NO_ANSWER
    except TimeoutError:
        return _NO_ANSWER
    except (OSError, UnicodeError, OverflowError):  # nothing listens, or no such name or port exists
        return ""
    return _WANTS_TLS if _speaks_tls(host, port) else _NO_GRPC


def _try_tls(plain: socket.socket, host: str, connection: TlsFiles) -> str:
    try:
        context = ssl.create_default_context(cafile=connection.tls_ca)
        if connection.tls_cert is not None:
            context.load_cert_chain(connection.tls_cert, connection.tls_key, password=lambda: b"")
    except (ssl.SSLError, OSError):
        return _NO_FILES
    context.set_alpn_protocols(["h2"])
    try:
        encrypted = context.wrap_socket(plain, server_hostname=host)
    except OSError as error:
        return _explain_handshake(error)
    with encrypted:
        try:
            is_grpc = _speaks_http2(encrypted)
        except TimeoutError:
            return _NO_ANSWER
        except OSError:  # TLS 1.3 reports a missing client certificate only after the handshake
            return _WANTS_CERTIFICATE
    trusted = _NOT_TRUSTED_BY_GRPC if connection.tls_ca is None else _NO_ANSWER
    return trusted if is_grpc else _NO_GRPC


def _explain_handshake(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERDICTS.get(error.verify_code, _NOT_TRUSTED)
    if isinstance(error, TimeoutError):
        return _NO_ANSWER
    return _WANTS_CERTIFICATE if _is_alert(error) else _NO_TLS


def _speaks_http2(connected: socket.socket) -> bool:
    """Tell whether a server's first frame is HTTP/2's.

    Raises:
        OSError: the server closes the connection silently, or with a TLS alert.
    """
    connected.sendall(_PREFACE)
    begin = connected.recv(_FRAME_HEAD_BYTES)
    if not begin and isinstance(connected, ssl.SSLSocket):
        raise ConnectionResetError
    return len(begin) > 3 and begin[3] == _SETTINGS


def _is_alert(error: OSError) -> bool:
    return isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")


def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=_STEP_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except OSError as error:
        return _is_alert(error)  # an alert comes from a server that speaks TLS
