"""Watch streams hear every change: loading, unloading, refusals, models that come and go."""

from __future__ import annotations

import queue
import shutil
import signal
import threading
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Watcher:
    """A Watch stream on a connection of its own, read by a thread of its own."""

    def __init__(self, server: ServerProcess, service: str) -> None:
        self._told: queue.Queue[object] = queue.Queue()
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(server.address, options=options)
        stub = health_pb2_grpc.HealthStub(self.channel)
        self._call = stub.Watch(health_pb2.HealthCheckRequest(service=service))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def next(self) -> object:
        """The next status, or the code that the stream ended with."""
        return self._told.get(timeout=20)

    def close(self) -> None:
        self._call.cancel()
        self._reader.join(timeout=20)
        self.channel.close()

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._told.put(answer.status)
        except grpc.RpcError as error:
            self._told.put(error.code())


@pytest.fixture(params=["grpcio", "native"])
def folder_and_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, ServerProcess]]:
    folder = tmp_path / "models"
    TinyNetwork().publish(folder / "tiny")
    with ServerProcess(folder, tmp_path / "server", "--transport", request.param) as server:
        yield folder, server


def load(server: ServerProcess, name: str) -> None:
    server.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name))


def unload(server: ServerProcess, name: str) -> None:
    server.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name))


def test_every_watcher_hears_every_change(folder_and_server: tuple[Path, ServerProcess]) -> None:
    """Of the server, of a model, and of one that is not there yet; leaving watchers silence nobody."""
    folder, server = folder_and_server
    leaving, model, also_model = (Watcher(server, "tiny") for _ in range(3))
    whole, later = Watcher(server, ""), Watcher(server, "later")
    assert [watcher.next() for watcher in (leaving, model, also_model, whole)] == [SERVING] * 4
    assert later.next() == UNKNOWN
    leaving.close()
    unload(server, "tiny")
    assert [watcher.next() for watcher in (model, also_model, whole)] == [NOT_SERVING] * 3
    load(server, "tiny")
    assert [watcher.next() for watcher in (model, also_model, whole)] == [SERVING] * 3
    TinyNetwork(seed=5).publish(folder / "later")
    load(server, "later")
    told = later.next()
    if told == NOT_SERVING:  # found and not proven yet; it may have been proven before that was told
        told = later.next()
    assert told == SERVING
    for watcher in (model, also_model, whole, later):
        watcher.close()
    assert "Traceback" not in server.log


def test_watchers_hear_of_models_added_and_removed_on_disk(tmp_path: Path) -> None:
    """Without any call: the server polls its folder and tells its watchers."""
    folder = tmp_path / "models"
    TinyNetwork().publish(folder / "tiny")
    with ServerProcess(folder, tmp_path / "server", "--poll-s", "0.2") as server:
        watcher = Watcher(server, "later")
        assert watcher.next() == UNKNOWN
        TinyNetwork(seed=5).publish(folder / "later")
        told = watcher.next()
        if told == NOT_SERVING:  # found and not proven yet
            told = watcher.next()
        assert told == SERVING
        shutil.rmtree(folder / "later")
        assert watcher.next() == NOT_SERVING
        watcher.close()


def test_a_refused_model_is_not_serving_and_an_unknown_one_not_found(
    folder_and_server: tuple[Path, ServerProcess],
) -> None:
    folder, server = folder_and_server
    stub = health_pb2_grpc.HealthStub(server.channel)
    version = TinyNetwork(seed=8).publish(folder / "bad")
    (version / "golden.npz").unlink()
    status_of(lambda: load(server, "bad"))
    assert stub.Check(health_pb2.HealthCheckRequest(service="bad")).status == NOT_SERVING
    watcher = Watcher(server, "bad")
    assert watcher.next() == NOT_SERVING
    watcher.close()
    request = health_pb2.HealthCheckRequest(service="nobody")
    assert status_of(lambda: stub.Check(request))[0] == grpc.StatusCode.NOT_FOUND


def test_watchers_hear_of_the_shutdown_and_do_not_delay_it(
    folder_and_server: tuple[Path, ServerProcess],
) -> None:
    """NOT_SERVING comes first, then the stream ends; the grace period of 30 s is not waited for."""
    _, server = folder_and_server
    watcher = Watcher(server, "tiny")
    assert watcher.next() == SERVING
    server.process.send_signal(signal.SIGTERM)
    assert watcher.next() == NOT_SERVING
    assert watcher.next() == grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(timeout=20) == 0
    watcher.close()
