"""The reasons why a server cannot be reached, and connections that are refused before they are tried."""

from __future__ import annotations

import datetime
import socket
from concurrent import futures
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from foldserve.serving.client import reachability
from foldserve.serving.client.channel import Connection
from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import CredentialsError, UnavailableError
from tests.support.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path

YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("identity", "validity", "reason"),
    [
        pytest.param("127.0.0.1", {"not_after": YESTERDAY}, "certificate has expired", id="expired"),
        pytest.param("example.org", {}, "certificate is for another name", id="another name"),
    ],
)
def test_bad_server_certificate_is_named(
    tmp_path: Path, identity: str, validity: dict[str, Any], reason: str
) -> None:
    authority = Authority(tmp_path, "own")
    pair = authority.sign("server", identity, **validity)
    credentials = grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.certificate.read_bytes())])
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        with pytest.raises(UnavailableError, match=reason):
            Client(f"127.0.0.1:{port}", tls_ca=authority.ca, connect_timeout_s=0.5)
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("token", ["", "two\nlines", "é"])
def test_token_with_characters_that_no_header_allows_is_refused(token: str) -> None:
    with pytest.raises(CredentialsError, match="printable ASCII"):
        Connection(token=token)


def test_certificate_needs_its_key(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="belong together"):
        Connection(tls_cert=tmp_path / "me.pem")


def test_token_is_not_in_the_repr() -> None:
    assert "secret" not in repr(Connection(token="secret"))


def test_silent_server_is_told_apart_from_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process is silent: the operating system still accepts connections."""
    monkeypatch.setattr(reachability, "_STEP_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for connection in (Connection(), Connection(tls=True)):
            assert "it accepts connections but answers no calls" in str(
                connection.explain(f"127.0.0.1:{port}")
            )
    assert "no server answers" in str(Connection().explain(f"127.0.0.1:{port}"))


@pytest.mark.parametrize(
    "server",
    ["unix:/tmp/nothing", "nonsense", "host:port", "127.0.0.1:99999", "é.invalid:1", ":1", "[::1]:1"],
)
def test_odd_addresses_have_no_server(server: str) -> None:
    assert "no server answers" in str(Connection(tls=True).explain(server))
