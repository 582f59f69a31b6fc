"""TLS and mutual TLS, with real clients against a real server process."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from typing import TYPE_CHECKING, NamedTuple

import grpc
import numpy as np
import pytest

from foldserve.serving.client.async_client import AsyncClient
from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import UnavailableError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.pb import open_inference_pb2_grpc
from tests.contract.test_commands import write_png
from tests.support.certificates import Authority, Pair
from tests.support.server_process import ServerProcess, run_cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from subprocess import CompletedProcess

    Command = Callable[..., CompletedProcess[str]]

    from tests.support.artifacts import TinyNetwork


class Setting(NamedTuple):
    """A server that speaks TLS, the authority that signed its certificate, and one that signed nothing."""

    server: ServerProcess
    authority: Authority
    stranger: Authority
    pair: Pair


@pytest.fixture(scope="module")
def setting(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = Authority(folder, "own"), Authority(folder, "strange")
    pair = authority.sign("server")
    flags = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
    with ServerProcess(repository, folder / "server", *flags) as server:
        yield Setting(server, authority, stranger, pair)


@pytest.fixture(scope="module")
def mutual(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("mutual")
    authority, stranger = Authority(folder, "own"), Authority(folder, "strange")
    pair = authority.sign("server")
    flags = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
    (folder / "clients.pem").write_bytes(authority.ca.read_bytes())
    flags += ["--tls-client-ca", str(folder / "clients.pem"), "--transport", "grpcio"]
    with ServerProcess(repository, folder / "server", *flags) as server:
        yield Setting(server, authority, stranger, pair)


def test_auto_chooses_grpcio_for_tls_and_logs_it(setting: Setting) -> None:
    assert re.search(r"transport grpcio: native, .*, cannot do --tls-cert", setting.server.log)
    assert re.search(r"TLS with the certificate in .*server.pem, which expires", setting.server.log)


def test_client_that_trusts_the_authority_is_answered(setting: Setting, network: TinyNetwork) -> None:
    images = network.random_images(2)
    with Client(setting.server.address, tls_ca=setting.authority.ca) as client:
        logits = client.infer("tiny", images)["logits"]
    assert np.abs(logits - network.logits(images)).max() < 1e-5

    async def ask() -> np.ndarray:
        async with AsyncClient(setting.server.address, tls_ca=setting.authority.ca) as client:
            return (await client.infer("tiny", images))["logits"]

    assert np.array_equal(asyncio.run(ask()), logits)


def test_generated_stub_is_answered(setting: Setting) -> None:
    """What any gRPC client does: nothing of ours but the protocol."""
    credentials = grpc.ssl_channel_credentials(setting.authority.ca.read_bytes())
    with grpc.secure_channel(setting.server.address, credentials) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready


def test_commands_use_tls(setting: Setting, tmp_path: Path, command: Command) -> None:
    flags = ("--server", setting.server.address, "--tls-ca", str(setting.authority.ca))
    image = write_png(tmp_path / "image.png", np.zeros((8, 8), np.uint8))
    classified = command("classify", "--model", "tiny", *flags, str(image))
    assert classified.returncode == 0, classified.stderr
    assert "label" in classified.stdout
    listed = command("models", "list", *flags)
    assert listed.returncode == 0, listed.stderr
    assert "READY" in listed.stdout


def why_not(server: ServerProcess | str, **connection: Path | bool) -> str:
    """Return why our client cannot reach ``server``, having seen both clients say the same."""
    address = server if isinstance(server, str) else server.address
    with pytest.raises(UnavailableError) as caught:
        Client(address, connect_timeout_s=0.5, **connection)  # type: ignore[arg-type]
    text = str(caught.value)

    async def ask() -> None:
        async with AsyncClient(address, connect_timeout_s=0.5, **connection):  # type: ignore[arg-type]
            raise AssertionError("the server was reached")

    with pytest.raises(UnavailableError, match=re.escape(text)):
        asyncio.run(ask())
    return text


def test_server_of_another_authority_is_not_trusted(setting: Setting) -> None:
    assert "not signed by a trusted authority" in why_not(setting.server, tls_ca=setting.stranger.ca)
    assert "not signed by a trusted authority" in why_not(setting.server, tls=True)


def test_client_without_tls_is_told_which_flag_to_set(setting: Setting, command: Command) -> None:
    assert "it speaks TLS; give --tls-ca (or --tls)" in why_not(setting.server)
    listed = command("models", "list", "--server", setting.server.address)
    assert listed.returncode == 1
    assert "it speaks TLS; give --tls-ca (or --tls)" in listed.stderr
    assert listed.stderr.count("\n") == 1


def test_client_with_tls_is_told_that_a_server_has_none(server: ServerProcess, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "own")
    assert "it does not speak TLS; leave out --tls and --tls-ca" in why_not(server, tls_ca=authority.ca)


@pytest.mark.parametrize("host", ["localhost", "dns:///localhost", "ipv4:127.0.0.1"])
def test_tls_failures_are_named_for_names_and_addresses(setting: Setting, host: str) -> None:
    """gRPC's own text names another address, or is empty, if it resolves a name."""
    address = f"{host}:{setting.server.address.rpartition(':')[2]}"
    untrusted = "its certificate is not signed by a trusted authority"
    assert untrusted in why_not(address, tls_ca=setting.stranger.ca)
    assert untrusted in why_not(address, tls=True)
    assert "it speaks TLS; give --tls-ca (or --tls)" in why_not(address)


def test_each_command_names_the_tls_failure(setting: Setting, tmp_path: Path, command: Command) -> None:
    image = str(write_png(tmp_path / "image.png", np.zeros((8, 8), np.uint8)))
    address = f"localhost:{setting.server.address.rpartition(':')[2]}"
    for words in (("models", "list"), ("classify", "--model", "tiny", image)):
        ended = command(*words, "--server", address, "--tls-ca", str(setting.stranger.ca))
        assert ended.returncode == 1
        expected = f"cannot talk to the server at {address}: its certificate is not signed by a trusted"
        assert expected in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_metrics_port_is_recognised_as_not_grpc(server: ServerProcess) -> None:
    with pytest.raises(UnavailableError, match="does not speak gRPC"):
        Client(server.http_address, connect_timeout_s=0.5)


def test_invalid_certificate_files_are_explained(setting: Setting, tmp_path: Path, command: Command) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    assert "are not PEM, or the key is not" in why_not(setting.server, tls_ca=tmp_path / "junk.pem")
    missing = command("models", "list", "--server", setting.server.address, "--tls-ca", "gone.pem")
    assert missing.returncode == 1
    assert "gone.pem cannot be read: No such file" in missing.stderr


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100), id="HTTP/2 in the clear"),
        pytest.param(b"\x16\x03\x01\xff\xff" + b"\xff" * 5000, id="bad hello"),
        pytest.param(b"\x16\x03\x01", id="part of a hello"),
    ],
)
def test_server_survives_bytes_that_are_not_a_handshake(setting: Setting, content: bytes) -> None:
    host, _, port = setting.server.address.partition(":")
    connections = [socket.create_connection((host, int(port))) for _ in range(20)]
    for connection in connections:
        connection.sendall(content)
    with Client(setting.server.address, tls_ca=setting.authority.ca) as client:
        assert client.index()
    for connection in connections:
        connection.close()
    assert "Traceback" not in setting.server.log


@pytest.mark.parametrize(
    ("most", "spoken"),
    [
        pytest.param(ssl.TLSVersion.TLSv1_2, "TLSv1.2", id="1.2"),
        pytest.param(ssl.TLSVersion.TLSv1_3, "TLSv1.3", id="1.3"),
        pytest.param(ssl.TLSVersion.TLSv1_1, None, id="1.1"),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_versions_are_refused(setting: Setting, most: ssl.TLSVersion, spoken: str | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(setting.authority.ca)
    context.set_ciphers("ALL:@SECLEVEL=0")  # the test machine's own policy must not be what refuses
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, most
    context.set_alpn_protocols(["h2"])
    host, _, port = setting.server.address.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    with connection:
        if spoken is None:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(connection, server_hostname="localhost")
            return
        with context.wrap_socket(connection, server_hostname="localhost") as tls:
            assert tls.version() == spoken
            assert tls.selected_alpn_protocol() == "h2"


def test_new_certificate_is_served_without_a_restart(repository: Path, tmp_path: Path) -> None:
    """By another authority, so that a client can tell; a connection that is open stays."""
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    pair = old.sign("server")
    flags = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
    with (
        ServerProcess(repository, tmp_path / "server", *flags) as server,
        Client(server.address, tls_ca=old.ca) as before,
    ):
        assert before.index()
        newer = new.sign("newer")
        pair.certificate.write_bytes(newer.certificate.read_bytes())
        with Client(server.address, tls_ca=old.ca) as meanwhile:
            assert meanwhile.index(), "a certificate without its key changes nothing"
        pair.key.write_bytes(newer.key.read_bytes())
        with Client(server.address, tls_ca=new.ca) as after:
            assert after.index()
        assert "not signed by a trusted authority" in why_not(server, tls_ca=old.ca)
        assert before.index()
        assert "the certificate stays as it was" in server.log
        assert "new certificate from" in server.log


def test_mutual_tls_refuses_clients_without_a_certificate(mutual: Setting, network: TinyNetwork) -> None:
    own = mutual.authority.sign("client", "ci@here")
    strange = mutual.stranger.sign("strange-client", "ci@here")
    server, ca = mutual.server, mutual.authority.ca
    images = network.random_images(2)
    with Client(server.address, tls_ca=ca, tls_cert=own.certificate, tls_key=own.key) as client:
        assert np.abs(client.infer("tiny", images)["logits"] - network.logits(images)).max() < 1e-5
    none = why_not(server, tls_ca=ca)
    assert "requires a client certificate (mutual TLS), give --tls-cert and --tls-key" in none
    assert why_not(server, tls_ca=ca, tls_cert=strange.certificate, tls_key=strange.key) == none
    assert "mutual TLS with the certificate" in server.log
    clients = ca.with_name("clients.pem")
    try:
        clients.write_bytes(ca.read_bytes() + mutual.stranger.ca.read_bytes())
        with Client(server.address, tls_ca=ca, tls_cert=strange.certificate, tls_key=strange.key) as client:
            assert client.index(), "the authorities of clients are read again, too"
    finally:
        clients.write_bytes(ca.read_bytes())


def test_unusable_certificate_stops_the_start(repository: Path, tmp_path: Path) -> None:
    """Not the first handshake, for somebody else to see. security/test_certificate.py has more."""
    authority = Authority(tmp_path, "own")
    key = authority.sign("x").key
    flags = (
        "--tls-cert",
        str(authority.sign("server").certificate),
        "--tls-key",
        str(key),
    )
    ended = run_cli("serve", "--repository", str(repository), "--port", "0", *flags)
    assert ended.returncode == 1
    assert "x.key is not that of the certificate in" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert "listening" not in ended.stdout
