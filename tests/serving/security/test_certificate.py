"""A certificate that cannot serve is refused with the reason before anybody meets it."""

from __future__ import annotations

import datetime
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization

from foldserve.serving.errors import CredentialsError
from foldserve.serving.security.certificate import ServerCredentials
from tests.support.certificates import Authority, Pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "own")


def swapped(authority: Authority) -> Pair:
    pair = authority.sign("server")
    return Pair(pair.key, pair.certificate)


def missing(authority: Authority) -> Pair:
    pair = authority.sign("server")
    pair.key.unlink()
    return pair


def mismatched(authority: Authority) -> Pair:
    return Pair(authority.sign("server").certificate, authority.sign("other").key)


def encrypted(authority: Authority) -> Pair:
    pair = authority.sign("server")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    pair.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    )
    return pair


def no_key(authority: Authority) -> Pair:
    pair = authority.sign("server")
    pair.key.write_text("password")
    return pair


def truncated(authority: Authority) -> Pair:
    pair = authority.sign("server")
    pair.key.write_bytes(pair.key.read_bytes()[:-60])
    return pair


@pytest.mark.parametrize(
    ("pair_of", "reason"),
    [
        pytest.param(
            lambda authority: authority.sign("server", not_after=NOW - DAY), "has expired", id="expired"
        ),
        pytest.param(
            lambda authority: authority.sign("server", not_before=NOW + DAY), "not yet valid", id="early"
        ),
        pytest.param(mismatched, "other.key is not that of the certificate in", id="another's key"),
        pytest.param(swapped, "server.key holds no certificate", id="swapped"),
        pytest.param(missing, "server.key cannot be read: No such file", id="missing"),
        pytest.param(encrypted, "is encrypted; decrypt it first: openssl pkey", id="encrypted"),
        pytest.param(no_key, "server.key holds no private key", id="no key"),
        pytest.param(truncated, "server.key", id="truncated"),
    ],
)
def test_unusable_certificate_is_explained(
    authority: Authority, pair_of: Callable[[Authority], Pair], reason: str
) -> None:
    pair = pair_of(authority)
    with pytest.raises(CredentialsError, match=reason):
        ServerCredentials(*pair)


def test_valid_certificate_is_loaded_with_its_expiry(authority: Authority) -> None:
    credentials = ServerCredentials(*authority.sign("server", not_after=NOW + DAY))
    expires_s = ssl.cert_time_to_seconds(credentials.current().expires)
    assert abs(expires_s - (NOW + DAY).timestamp()) < 2
    assert not credentials.wants_client_certificate


def test_invalid_authorities_are_explained(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(CredentialsError, match=r"junk\.pem holds no certificates of authorities"):
        ServerCredentials(*authority.sign("server"), client_ca=tmp_path / "junk.pem")


def test_only_changed_certificate_files_are_reloaded(authority: Authority) -> None:
    credentials = ServerCredentials(*authority.sign("server"))
    first = credentials.current()
    assert credentials.current() is first
    pair = authority.sign("server")
    assert credentials.current().chain == pair.certificate.read_bytes() != first.chain


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> None:
    """Do a handshake in memory, and let each end read what the other sent."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_end = server.wrap_bio(to_server, to_client, server_side=True)
    client_end = client.wrap_bio(to_client, to_server, server_hostname=name)
    waiting = [client_end, server_end]
    while waiting:
        end = waiting.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(end)
    server_end.write(b"x")
    assert client_end.read(1) == b"x"
    assert not client_end.session_reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", [None, "localhost"])
def test_new_authorities_of_clients_replace_the_old_ones(
    authority: Authority, tmp_path: Path, version: ssl.TLSVersion, name: str | None
) -> None:
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    own.check_hostname, own.maximum_version = False, version
    own.load_verify_locations(authority.ca)
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(first.ca.read_bytes())
    credentials = ServerCredentials(*authority.sign("server"), client_ca=trusted)
    server = credentials.to_context()
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(server, own, name)
    own.load_cert_chain(*first.sign("client", "me@example.org"))
    shake_hands(server, own, name)
    trusted.write_bytes(second.ca.read_bytes())
    authority.sign("server")
    credentials.load_into(server)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(server, own, name)
    own.load_cert_chain(*second.sign("client", "me@example.org"))
    shake_hands(server, own, name)


def test_half_replaced_certificate_leaves_the_old_one_in_force(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.sign("server")
    credentials = ServerCredentials(*pair)
    first = credentials.current()
    newer = authority.sign("newer")
    pair.certificate.write_bytes(newer.certificate.read_bytes())
    for _ in range(3):
        assert credentials.current() is first
    assert len(caplog.records) == 1, "one failure is logged once, not at every handshake"
    assert "not that of the certificate" in caplog.text
    pair.key.write_bytes(newer.key.read_bytes())
    assert credentials.current().key == newer.key.read_bytes()
    pair.key.unlink()
    assert credentials.current().key == newer.key.read_bytes()
