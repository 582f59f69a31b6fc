"""The server's certificate: tried in a handshake before it is used, and read again when its files change."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foldserve.serving.errors import CredentialsError

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Certificate:
    """What TLS needs, as PEM: the chain, its private key, and the authorities of clients, if any."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    expires: str


class ServerCredentials:
    """The certificate in some files, as they are now. Methods may be called from any thread.

    Args:
        chain: PEM file of the certificate, followed by those of intermediate authorities.
        key: PEM file of the certificate's private key, not encrypted.
        client_ca: PEM file of the authorities that sign clients' certificates; None asks clients for none.
    """

    def __init__(self, chain: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read the files.

        Raises:
            CredentialsError: one cannot be read, they do not belong together, or the certificate is not valid
                today.
        """
        self._chain, self._key, self._client_ca = chain, key, client_ca
        self._changing = threading.Lock()
        self._seen = self._fingerprint()
        self._current = self._read()

    @property
    def wants_client_certificate(self) -> bool:
        """Whether clients must have a certificate, too (mutual TLS)."""
        return self._client_ca is not None

    def current(self) -> Certificate:
        """Return the certificate, read again where a file has changed.

        Files that cannot be used, such as a new certificate whose key is not there yet, leave the old one in
        place, and are looked at again when they change again.
        """
        with self._changing:
            try:
                fingerprint = self._fingerprint()
                if fingerprint == self._seen:
                    return self._current
                self._seen = fingerprint
                self._current = self._read()
            except CredentialsError as error:
                _log.error("the certificate stays as it was: %s", error)
            else:
                _log.info("new certificate from %s, which expires %s", self._chain, self._current.expires)
            return self._current

    def _fingerprint(self) -> tuple[tuple[int, int, int], ...]:
        """Return what changes when a file is replaced, written to, or gone."""
        files = (self._chain, self._key, *([self._client_ca] if self._client_ca else []))
        facts = []
        for file in files:
            try:
                found = file.stat()
                facts.append((found.st_ino, found.st_mtime_ns, found.st_size))
            except OSError:
                facts.append((0, 0, 0))
        return tuple(facts)

    def _read(self) -> Certificate:
        chain, key = _read_file(self._chain), _read_file(self._key)
        client_ca = None if self._client_ca is None else _read_authorities(self._client_ca)
        expires = _try_out(self._chain, self._key)
        # OpenSSL has read the files by itself: what was tried must be what is served.
        if (chain, key) != (_read_file(self._chain), _read_file(self._key)):
            raise CredentialsError(f"{self._chain} or {self._key} changed while it was read")
        return Certificate(chain, key, client_ca, expires)


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
            f"{path} holds no certificates of authorities; expected PEM, -----BEGIN CERTIFICATE-----"
        ) from error
    return content


def _try_out(chain: Path, key: Path) -> str:
    """Shake hands over the pair, both ends in memory, and return when the certificate expires.

    The client's end trusts what is in ``chain`` and checks nothing but that the certificate is whole, its
    key's, meant for servers and valid today.

    Raises:
        CredentialsError: it fails; the message says why.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password's callback OpenSSL would ask at the terminal for that of an encrypted key.
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
        raise CredentialsError(f"the certificate in {chain} cannot serve: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise CredentialsError(f"the certificate in {chain} cannot serve: {error.reason or error}") from error


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, object]:
    """Return what the client has seen of the server's certificate."""
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
        return f"the private key in {key} is not that of the certificate in {chain}; give a pair"
    if b"-----BEGIN CERTIFICATE-----" not in _read_file(chain):
        return f"{chain} holds no certificate; expected PEM, -----BEGIN CERTIFICATE-----"
    content = _read_file(key)
    if b"PRIVATE KEY-----" not in content:
        return f"{key} holds no private key; expected PEM, -----BEGIN PRIVATE KEY-----"
    if b"ENCRYPTED" in content:
        return f"the private key in {key} is encrypted; decrypt it first: openssl pkey -in {key} -out FILE"
    return f"{chain} and {key} cannot be used: {error}"
