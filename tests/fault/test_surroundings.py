"""Where the server runs: temporary folders that do not serve, names with two addresses, killed servers."""

from __future__ import annotations

import socket
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from foldserve.serving.errors import ListenError, TransportMissingError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.pb import open_inference_pb2_grpc
from foldserve.serving.transport import base as choose
from foldserve.serving.transport.backend import Backend
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess, infer_request

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    TinyNetwork().publish(folder / "tiny")
    return folder


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def ask_everything(server: ServerProcess) -> None:
    """Calls that native answers itself, and calls that it forwards to grpcio."""
    server.infer(TinyNetwork().random_images(1))
    assert server.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny")).name == "tiny"
    requests = iter([infer_request(TinyNetwork().random_images(1))])
    assert not next(server.stub.ModelStreamInfer(requests)).error_message


@pytest.mark.parametrize("place", ["long", "missing", "read-only", "short"])
def test_server_needs_no_temporary_folder(
    repository: Path, tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """It is neither needed nor filled, even if the server is killed."""
    folder = tmp_path / {"long": "x" * 150}.get(place, "t")
    if place != "missing":
        folder.mkdir(mode=0o500 if place == "read-only" else 0o700)
    monkeypatch.setenv("TMPDIR", str(folder))
    with ServerProcess(repository, tmp_path / "server", "--transport", transport) as server:
        ask_everything(server)
        server.process.kill()
        server.process.wait()
    assert not folder.exists() or not list(folder.iterdir())


def test_localhost_listens_on_both_loopback_addresses(
    repository: Path, tmp_path: Path, transport: str
) -> None:
    """Clients may try either first; each answers everything, on the port of gRPC and on that of probes."""
    with ServerProcess(
        repository, tmp_path / "server", "--transport", transport, "--host", "localhost"
    ) as server:
        for address in ["127.0.0.1", *(["[::1]"] if has_ipv6() else [])]:
            target = f"{address}:{server.address.rpartition(':')[2]}"
            with grpc.insecure_channel(f"ipv{6 if '[' in address else 4}:{target}") as channel:
                stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
                assert stub.ModelInfer(infer_request(TinyNetwork().random_images(1)), timeout=20)
                assert stub.ServerLive(pb.ServerLiveRequest(), timeout=20).live
            probes = f"{address}:{server.http_address.rpartition(':')[2]}"
            with urllib.request.urlopen(f"http://{probes}/readyz", timeout=20) as page:
                assert page.status == 200
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        assert "2 requests were answered OK" in server.log or not has_ipv6()


@pytest.mark.parametrize("host", ["nobody.invalid", "x" * 80])
def test_hosts_that_are_not_this_machine_are_explained(host: str) -> None:
    from foldserve.serving.addresses import listen_addresses

    with pytest.raises(ListenError, match="is not an address of this machine; choose another --host"):
        listen_addresses(host)


class _FakeGrpcio:
    name = "grpcio"

    def __init__(self, *_: object) -> None:
        pass


def _refuse(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_auto_chooses_grpcio_if_native_cannot_create_its_socket(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "GrpcioTransport", _FakeGrpcio)
    monkeypatch.setattr(socket.socket, "bind", _refuse)
    caplog.set_level("INFO")
    _assert_falls_back(caplog, "needs an abstract Unix socket, which cannot be created here")


def test_auto_chooses_grpcio_if_native_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "GrpcioTransport", _FakeGrpcio)
    monkeypatch.setitem(sys.modules, "foldserve.serving.transport.native", None)
    caplog.set_level("INFO")
    _assert_falls_back(caplog, "needs pygrpc-native, which cannot be imported here")


def _assert_falls_back(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    def open_one(name: Any) -> Any:
        return choose.open_transport(name, Backend(None, None, None), None)  # type: ignore[arg-type]

    assert open_one("auto").name == "grpcio"
    assert f"transport grpcio: native, several times faster, {reason}" in caplog.text
    with pytest.raises(TransportMissingError, match=reason):
        open_one("native")
