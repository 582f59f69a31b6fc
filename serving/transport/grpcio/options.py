"""Translates the wire settings into grpcio's options and credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import grpc

if TYPE_CHECKING:
    from foldserve.serving.security.certificate import Certificate, ServerCredentials
    from foldserve.serving.transport.settings import WireSettings

_Options: TypeAlias = "tuple[tuple[str, int], ...]"

# A connection that sends nothing is closed after this time instead of gRPC's two minutes, so that a client
# who opens thousands holds them for less long. A client's TLS handshake takes some round trips.
_HANDSHAKE_MS = 20_000
# The third ping that comes sooner after the one before closes the connection.
_LEAST_PING_MS = 1000
# The native front adds at most this much metadata to the calls it forwards.
_FALLBACK_METADATA_BYTES = 4096
# Bytes that a stream may send before they are read: enough for 10 MB/s with a round trip of 100 ms.
_AHEAD_BYTES = 1024 * 1024


def server_options(settings: WireSettings, *, is_fallback: bool) -> _Options:
    """Return the options of a server that callers connect to, or of one behind another transport."""
    metadata_bytes = settings.max_metadata_bytes + (_FALLBACK_METADATA_BYTES if is_fallback else 0)
    options: _Options = (
        # Unless it is asked for, two servers on one port must be an error, not a split of the traffic.
        ("grpc.so_reuseport", int(settings.reuse_port)),
        ("grpc.max_receive_message_length", settings.message_limit.wire_bytes),
        # See serving.transport.compression.
        ("grpc.per_message_decompression", 0),
        # Proxies ping a connection every other second, to notice a server that hangs (deploy/envoy), whether
        # there are calls on it or not. gRPC's own limits, one ping in five minutes and without calls one in
        # two hours, would close it, and end the calls.
        ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # The window of a stream, in addition to the message being read. gRPC's own estimate grows with the
        # round trip: on a busy machine it let a stream that nobody read send 700 MB.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _AHEAD_BYTES),
        # Responses are bounded by the request's rows; a limit here would fail requests after they ran.
        ("grpc.max_send_message_length", -1),
        # Both with one value: between the two limits gRPC refuses calls at random.
        ("grpc.max_metadata_size", metadata_bytes),
        ("grpc.absolute_max_metadata_size", metadata_bytes),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
    )
    return options if is_fallback else (*options, *_connection_options(settings))


def _connection_options(settings: WireSettings) -> _Options:
    limits = {
        "grpc.max_concurrent_streams": settings.max_concurrent_streams,
        "grpc.max_allowed_incoming_connections": settings.max_connections,
        "grpc.max_connection_idle_ms": _to_ms(settings.max_connection_idle_s),
    }
    if settings.max_connection_age_s is not None:
        # gRPC varies each connection's age by up to a tenth, so that they do not all end together.
        limits["grpc.max_connection_age_ms"] = _to_ms(settings.max_connection_age_s)
        limits["grpc.max_connection_age_grace_ms"] = _to_ms(settings.grace_s)
    return tuple((name, value) for name, value in limits.items() if value is not None)


def _to_ms(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, round(seconds * 1000))


def to_grpc(credentials: ServerCredentials) -> grpc.ServerCredentials:
    """Return credentials that look for a new certificate at each TLS handshake."""
    served = credentials.current()

    def look_again() -> grpc.ServerCertificateConfiguration | None:
        """Return a new certificate, or None to keep the current one. Runs on gRPC's threads."""
        nonlocal served
        certificate = credentials.current()
        if certificate is served:
            return None
        served = certificate
        return _configuration(certificate)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(served),
        look_again,  # type: ignore[arg-type]  # types-grpcio does not know that None is allowed
        require_client_authentication=credentials.wants_client_certificate,
    )


def _configuration(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    pair = (certificate.key, certificate.chain)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=certificate.client_ca)
