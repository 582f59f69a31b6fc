"""Holds the settings of both transports; docs/operations.md lists which of them each transport supports."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.serving.security.certificate import ServerCredentials
from foldserve.serving.security.permissions import Permissions
from foldserve.serving.security.tokens import Tokens
from foldserve.serving.services.message_limit import MessageLimit

if TYPE_CHECKING:
    from foldserve.serving.config import ServeConfig
    from foldserve.serving.repository.index import ModelIndex

_MIB = 1024 * 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WireSettings:
    """Limits and permissions at the wire.

    Attributes:
        message_limit: the largest message accepted.
        permissions: who may call which method.
        credentials: the server's certificate if it uses TLS; grpcio only.
        max_metadata_bytes: most bytes of metadata per call, counted as HTTP/2 counts a header list.
        max_concurrent_streams: most open calls per connection.
        max_connections, max_connection_age_s, max_connection_idle_s: limits on connections; grpcio only.
        grace_s: seconds that the calls of an expired connection may go on.
        reflection: whether callers may list the services and their messages.
        reuse_port: whether other servers may listen on the same port.
        is_for_this_machine: whether only this machine can reach the server, and calls it as it likes.
    """

    message_limit: MessageLimit
    permissions: Permissions
    credentials: ServerCredentials | None
    max_metadata_bytes: int
    max_concurrent_streams: int
    max_connections: int
    max_connection_age_s: float | None
    max_connection_idle_s: float | None
    grace_s: float
    reflection: bool
    reuse_port: bool = False
    is_for_this_machine: bool = False


def wire_settings(config: ServeConfig, index: ModelIndex, *, max_connections: int) -> WireSettings:
    """Read the files named in ``config`` and return its transport settings, with at most ``max_connections``.

    Raises:
        CredentialsError: a certificate, key or token file cannot be used.
    """
    credentials = None
    if config.tls_cert is not None and config.tls_key is not None:
        credentials = ServerCredentials(config.tls_cert, config.tls_key, config.tls_client_ca)
    max_message_bytes = None if config.max_message_mib is None else config.max_message_mib * _MIB
    return WireSettings(
        message_limit=MessageLimit(index, max_message_bytes),
        permissions=Permissions(None if config.tokens is None else Tokens(config.tokens)),
        credentials=credentials,
        max_metadata_bytes=config.max_metadata_kib * 1024,
        max_concurrent_streams=config.max_concurrent_streams,
        max_connections=min(config.max_connections or max_connections, max_connections),
        max_connection_age_s=config.max_connection_age_s,
        max_connection_idle_s=config.max_connection_idle_s,
        grace_s=config.grace_period_s,
        reflection=config.reflection,
        reuse_port=config.reuse_port,
        is_for_this_machine=config.is_for_this_machine,
    )


def log_who_may_call(config: ServeConfig, settings: WireSettings) -> None:
    """Log how callers authenticate; warn if they need not and the server listens beyond this machine."""
    if settings.credentials is not None:
        mutual = "mutual TLS" if settings.credentials.wants_client_certificate else "TLS"
        expires = settings.credentials.current().expires
        _log.info("%s with the certificate in %s, which expires %s", mutual, config.tls_cert, expires)
    if config.transport == "native" and not config.trusts_callers:
        _log.warning(
            "anyone who reaches %s can end this server with a few bytes, because native allocates the size "
            "that a message's header claims: use --transport grpcio, or confirm with --trust-callers",
            config.host,
        )
    if config.is_open_to_strangers:
        _log.warning(
            "anyone who reaches %s may call: restrict callers with --tokens or --tls-client-ca, or use "
            "--host 127.0.0.1",
            config.host,
        )


def log_limits(settings: WireSettings) -> None:
    """Log the largest message accepted, and warn for each model whose full batch does not fit into one."""
    limit = settings.message_limit
    _log.info("messages of up to %d MiB are accepted", limit.max_bytes() // _MIB)
    for name, needed_mib in limit.too_small_for().items():
        _log.warning(
            "a full batch of %s may take %d MiB, which is over the limit: send fewer images per request, or "
            "set --max-message-mib %d",
            name,
            needed_mib,
            needed_mib,
        )
