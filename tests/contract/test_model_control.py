"""Loading and unloading while the server serves."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.foreign_clients import CLIENTS, report_of
from tests.support.server_process import ServerProcess, outputs_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["grpcio", "native"])
def folder_and_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, ServerProcess]]:
    folder = tmp_path / "models"
    TinyNetwork().publish(folder / "tiny")
    with ServerProcess(folder, tmp_path / "server", "--transport", request.param) as server:
        yield folder, server


def load(server: ServerProcess, name: str = "tiny") -> None:
    server.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name))


def unload(server: ServerProcess, name: str = "tiny") -> None:
    server.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name))


def is_healthy(server: ServerProcess, service: str) -> bool:
    stub = health_pb2_grpc.HealthStub(server.channel)
    status = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


def test_unloaded_model_is_unavailable_until_it_is_loaded_again(
    folder_and_server: tuple[Path, ServerProcess],
) -> None:
    _, server = folder_and_server
    images = TinyNetwork().random_images(2)
    unload(server)
    code, text = status_of(lambda: server.infer(images))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert "unloaded on request" in text
    assert not server.stub.ServerReady(pb.ServerReadyRequest()).ready
    assert not is_healthy(server, "tiny")
    load(server)
    assert np.abs(outputs_of(server.infer(images))["logits"] - TinyNetwork().logits(images)).max() < 1e-5
    assert is_healthy(server, "tiny")
    assert is_healthy(server, "")


def test_load_finds_new_versions_and_models(folder_and_server: tuple[Path, ServerProcess]) -> None:
    folder, server = folder_and_server
    newer = TinyNetwork(seed=8)
    newer.publish(folder / "tiny")
    newer.publish(folder / "other")
    load(server)
    load(server, "other")
    images = newer.random_images(2)
    response = server.infer(images)
    assert response.model_version == "2"
    assert np.abs(outputs_of(response)["logits"] - newer.logits(images)).max() < 1e-5
    assert server.infer(images, "other").model_version == "1"
    shutil.rmtree(folder / "tiny" / "2")
    load(server)
    assert server.infer(images).model_version == "1"


def test_load_refuses_a_damaged_version(folder_and_server: tuple[Path, ServerProcess]) -> None:
    folder, server = folder_and_server
    version = TinyNetwork(seed=8).publish(folder / "other")
    content = bytearray((version / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (version / "model.onnx").write_bytes(content)
    code, text = status_of(lambda: load(server, "other"))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert "SHA-256" in text
    assert server.infer(TinyNetwork().random_images(1)).model_name == "tiny"


def test_load_of_a_bad_update_fails_and_the_old_version_still_serves(
    folder_and_server: tuple[Path, ServerProcess],
) -> None:
    folder, server = folder_and_server
    newer = TinyNetwork(seed=8).publish(folder / ".staged")
    (newer / "golden.npz").unlink()
    newer.rename(folder / "tiny" / "2")
    code, text = status_of(lambda: load(server))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert "still serves version 1: 2: golden.npz is missing" in text
    assert server.infer(TinyNetwork().random_images(1)).model_version == "1"


def test_failed_loads_are_explained(folder_and_server: tuple[Path, ServerProcess]) -> None:
    _, server = folder_and_server
    for name in ("nets", "", "../models/tiny"):
        assert status_of(lambda given=name: load(server, given))[0] == grpc.StatusCode.NOT_FOUND  # type: ignore[misc]
        assert status_of(lambda given=name: unload(server, given))[0] == grpc.StatusCode.NOT_FOUND  # type: ignore[misc]
    request = pb.RepositoryModelLoadRequest(model_name="tiny")
    request.parameters["config"].string_param = "{}"
    code, text = status_of(lambda: server.stub.RepositoryModelLoad(request))
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert "'config'" in text


def test_model_control_can_be_switched_off(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    TinyNetwork().publish(folder / "tiny")
    with ServerProcess(folder, tmp_path / "server", "--no-model-control") as server:
        code, text = status_of(lambda: unload(server))
        assert code == grpc.StatusCode.PERMISSION_DENIED
        assert "--model-control" in text
        assert server.infer(TinyNetwork().random_images(1)).model_name == "tiny"


def test_stock_triton_client_unloads_and_loads(folder_and_server: tuple[Path, ServerProcess]) -> None:
    _, server = folder_and_server
    script = CLIENTS / "triton_control_script.py"
    before, unloaded, loaded, unknown = report_of(sys.executable, script, server.address, "tiny")
    assert before == loaded == [True, ["READY"], "1"]
    assert unloaded == [False, ["UNAVAILABLE"], "StatusCode.UNAVAILABLE"]
    assert unknown[0] == "StatusCode.NOT_FOUND"
