"""The settings of the wire in grpcio's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import grpc

if TYPE_CHECKING:
    from foldserve.serving.security.certificate import Certificate, ServerCredentials
    from foldserve.serving.transport.settings import WireSettings

_Options: TypeAlias = "tuple[tuple[str, int], ...]"

# A connection that says nothing is closed after that, not after gRPC's two minutes: whoever opens thousands
# and stays silent holds them for less long. A client's TLS handshake takes some round trips.
_HANDSHAKE_MS = 20_000
# The front adds no more than this to the metadata of what it passes on.
_FALLBACK_METADATA_BYTES = 4096
# What a stream may send ahead of being read: enough for 10 MB/s where the round trip takes 100 ms.
_AHEAD_BYTES = 1024 * 1024


def server_options(settings: WireSettings, *, is_fallback: bool) -> _Options:
    """Return the options of a server that meets the wire, or of one behind another transport."""
    metadata_bytes = settings.max_metadata_bytes + (_FALLBACK_METADATA_BYTES if is_fallback else 0)
    options: _Options = (
        # Unless it is asked for, two servers on one port must be an error, not a split of the traffic.
        ("grpc.so_reuseport", int(settings.reuse_port)),
        ("grpc.max_receive_message_length", settings.message_limit.wire_bytes),
        # See serving.transport.unpack.
        ("grpc.per_message_decompression", 0),
        # Clients may look every ten seconds whether a quiet connection lives; gRPC's own limit of
        # five minutes would close on them.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # A message that is being read has its size more. gRPC's own estimate grows with the round trip: on a
        # busy machine it let a stream that was not read send 700 MB.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _AHEAD_BYTES),
        # A response is bounded by its request's rows; a limit here would fail after the work is done.
        ("grpc.max_send_message_length", -1),
        # Both, and alike: between the first and the second gRPC refuses some calls, by chance.
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
        # gRPC makes each connection's age up to a tenth shorter or longer, so that not all end together.
        limits["grpc.max_connection_age_ms"] = _to_ms(settings.max_connection_age_s)
        limits["grpc.max_connection_age_grace_ms"] = _to_ms(settings.grace_s)
    return tuple((name, value) for name, value in limits.items() if value is not None)


def _to_ms(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, round(seconds * 1000))


def to_grpc(credentials: ServerCredentials) -> grpc.ServerCredentials:
    """Return credentials that gRPC asks for the certificate at each handshake."""
    served = credentials.current()

    def look_again() -> grpc.ServerCertificateConfiguration | None:
        """Called from threads of gRPC's; None keeps what there is, and costs next to nothing."""
        nonlocal served
        certificate = credentials.current()
        if certificate is served:
            return None
        served = certificate
        return _configuration(certificate)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(served),
        look_again,  # type: ignore[arg-type]  # types-grpcio leaves out that it may return None
        require_client_authentication=credentials.wants_client_certificate,
    )


def _configuration(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    pair = (certificate.key, certificate.chain)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=certificate.client_ca)
