"""Why a server cannot be reached, found by trying it step by step: the connection, TLS, HTTP/2.

gRPC's own words do not tell it reliably: where it tries again, they may be about something else, or missing.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from serving.channel import Connection

# For each step; long enough for a handshake around the world.
_STEP_S = 3.0
# What an HTTP/2 client begins with: its preface and empty settings. A server's first frame is of that type.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_FRAME_HEAD_BYTES = 9

_NO_FILES = "the files given with --tls-ca, --tls-cert and --tls-key are no PEM, or no pair"
_NOT_TRUSTED = "its certificate is not by an authority that is trusted here; give --tls-ca"
_NO_TLS = "it does not speak TLS; leave out --tls and --tls-ca, or switch its TLS on"
_WANTS_TLS = "it speaks TLS; give --tls-ca (or --tls)"
_WANTS_CERTIFICATE = (
    "it closed the connection; if it wants a client's certificate (mutual TLS), give --tls-cert and "
    "--tls-key, by an authority that it trusts"
)
_NO_GRPC = "what answers there does not speak gRPC (HTTP/2); is it another port?"
_NO_ANSWER = "it takes connections, but answers no calls"
_NOT_TRUSTED_BY_GRPC = "its certificate is by an authority that gRPC does not trust by itself; give --tls-ca"
# OpenSSL's codes of what is wrong with a certificate; any other is of who has signed it.
_VERDICTS = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired; it needs a new one",
    62: "its certificate is for another name; use the name that it was made for",
    64: "its certificate is for another name; use the name that it was made for",
}


def explain_unreached(server: str, connection: Connection) -> str:
    """Return why a channel to ``server`` came to nothing; "" where nothing takes a connection there."""
    reasons = (_try(host, port, connection) for host, port in _addresses(server))
    return next((reason for reason in reasons if reason), "")


def _addresses(server: str) -> Iterator[tuple[str, int]]:
    """Yield the hosts and ports of a gRPC target; none of what is no HOST:PORT, such as a socket's path."""
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        server = server.removeprefix(scheme)
    for address in server.split(","):
        host, _, port = address.rpartition(":")
        if host and port.isdecimal():
            yield host.strip("[]"), int(port)


def _try(host: str, port: int, connection: Connection) -> str:
    try:
        with socket.create_connection((host, port), timeout=_STEP_S) as plain:
            if connection.is_encrypted:
                return _try_tls(plain, host, connection)
            if _speaks_http2(plain):
                return _NO_ANSWER
    except TimeoutError:
        return _NO_ANSWER
    except (OSError, UnicodeError, OverflowError):  # nothing listens, or there is no such name or port
        return ""
    return _WANTS_TLS if _speaks_tls(host, port) else _NO_GRPC


def _try_tls(plain: socket.socket, host: str, connection: Connection) -> str:
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
        except OSError:  # TLS 1.3 tells only behind the handshake that a client's certificate is wanted
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
    """Tell whether what a server says first is HTTP/2.

    Raises:
        OSError: it ends the connection without a word, or with an alert.
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
        return _is_alert(error)  # of a handshake that it would have had otherwise
