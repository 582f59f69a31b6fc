"""Loads the server's certificate: tests it in a handshake, and reloads it when its files change."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from foldserve.files import file_fingerprint
from foldserve.serving.errors import CredentialsError

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.files import FileFingerprint

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Certificate:
    """The PEM files of TLS: certificate chain, private key, and the clients' authorities if any.

    Attributes:
        context: certificate, key and authorities for connections of Python's own TLS.
    """

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: str
    context: ssl.SSLContext = field(repr=False, compare=False)


class ServerCredentials:
    """Provides the current certificate from its files. Methods may be called from any thread.

    Args:
        chain: PEM file of the certificate, followed by those of intermediate authorities.
        key: PEM file of the certificate's private key, not encrypted.
        client_ca: PEM file of the authorities that sign clients' certificates; None requires no certificate.
    """

    def __init__(self, chain: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read the files.

        Raises:
            CredentialsError: a file cannot be read, certificate and key do not match, or the certificate is
                not valid today.
        """
        self._chain, self._key, self._client_ca = chain, key, client_ca
        self._changing = threading.Lock()
        self._seen = self._fingerprints()
        self._current = self._read()

    @property
    def wants_client_certificate(self) -> bool:
        """Whether clients must present a certificate too (mutual TLS)."""
        return self._client_ca is not None

    def current(self) -> Certificate:
        """Return the certificate, reloaded if a file has changed.

        If the new files cannot be used, for example because the key is not written yet, the old certificate
        stays in force until they change again.
        """
        with self._changing:
            try:
                fingerprints = self._fingerprints()
                if fingerprints == self._seen:
                    return self._current
                self._seen = fingerprints
                self._current = self._read()
            except CredentialsError as error:
                _log.error("the certificate stays as it was, because the new one cannot be used: %s", error)
            else:
                _log.info("new certificate from %s, which expires %s", self._chain, self._current.expires)
            return self._current

    def to_context(self) -> ssl.SSLContext:
        """Return a context for Python's own TLS, with the current certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.wants_client_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            # A session that is resumed shows no certificate, though its authority may be trusted no more.
            context.num_tickets = 0
            context.options |= ssl.OP_NO_TICKET
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Use the current certificate for the new connections of ``context``, and no earlier one.

        Each connection moves to the certificate's own context as it begins: authorities that a context has
        once loaded are trusted for as long as it lives.
        """
        context.sni_callback = partial(_move, self.current().context)

    def _fingerprints(self) -> list[FileFingerprint | None]:
        paths = (self._chain, self._key, self._client_ca)
        return [file_fingerprint(path) for path in paths if path is not None]

    def _read(self) -> Certificate:
        chain, key = _read_file(self._chain), _read_file(self._key)
        client_ca = None if self._client_ca is None else _read_authorities(self._client_ca)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        expires = _test_handshake(context, self._chain, self._key)
        # OpenSSL has read the files itself: the certificate tested must be the one served.
        if (chain, key) != (_read_file(self._chain), _read_file(self._key)):
            raise CredentialsError(f"{self._chain} or {self._key} changed while being read")
        if client_ca is not None:
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
        return Certificate(chain, key, client_ca, expires, context)


def _move(context: ssl.SSLContext, connection: ssl.SSLObject, *_: object) -> None:
    connection.context = context


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error.strerror}") from error


def _read_authorities(path: Path) -> bytes:
    content = _read_file(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise CredentialsError(
            f"{path} holds no certificates of authorities; expected PEM (-----BEGIN CERTIFICATE-----)"
        ) from error
    return content


def _test_handshake(server: ssl.SSLContext, chain: Path, key: Path) -> str:
    """Load the pair into ``server``, test it in a TLS handshake in memory, and return when it expires.

    The client trusts the certificates in ``chain``. It checks only that the certificate is intact, matches
    its key, is meant for servers and is valid today.

    Raises:
        CredentialsError: the handshake fails; the message says why.
    """
    try:
        # Without this callback OpenSSL would ask for an encrypted key's password on the terminal.
        server.load_cert_chain(chain, key, password=lambda: b"")
    except ssl.SSLError as error:
        raise CredentialsError(_pair_message(chain, key, error)) from error
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cafile=chain)
    try:
        return str(_shake_hands(server, client).get("notAfter", "never"))
    except ssl.SSLCertVerificationError as error:
        raise CredentialsError(
            f"the certificate in {chain} cannot be used: {error.verify_message}"
        ) from error
    except ssl.SSLError as error:
        raise CredentialsError(
            f"the certificate in {chain} cannot be used: {error.reason or error}"
        ) from error


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, object]:
    """Do a handshake, and return the server's certificate as the client received it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server)
    waiting = [client_end, server_end]
    while waiting:
        end = waiting.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(end)
    return dict(client_end.getpeercert() or {})


def _pair_message(chain: Path, key: Path, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the private key in {key} is not that of the certificate in {chain}; use a matching pair"
    if b"-----BEGIN CERTIFICATE-----" not in _read_file(chain):
        return f"{chain} holds no certificate; expected PEM (-----BEGIN CERTIFICATE-----)"
    content = _read_file(key)
    if b"PRIVATE KEY-----" not in content:
        return f"{key} holds no private key; expected PEM (-----BEGIN PRIVATE KEY-----)"
    if b"ENCRYPTED" in content:
        return f"the private key in {key} is encrypted; decrypt it first: openssl pkey -in {key} -out FILE"
    return f"{chain} and {key} cannot be used: {error}"
