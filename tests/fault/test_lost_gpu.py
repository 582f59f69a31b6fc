"""A GPU that breaks while it serves: its models stop, and say so, and the server stays up to be asked."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foldserve.runtime.session import cuda_is_present
from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.repository_changes import eventually, serves, states
from tests.support.server_process import SOURCE, ServerProcess, outputs_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NETWORK = TinyNetwork()
IMAGES = NETWORK.random_images(2)


@pytest.fixture
def lost_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOST_GPU_FILE", str(tmp_path / "lost"))
    return tmp_path / "lost"


@pytest.fixture
def server(tmp_path: Path, lost_file: Path, transport: str) -> Iterator[ServerProcess]:
    NETWORK.publish(tmp_path / "models" / "tiny")
    NETWORK.publish(tmp_path / "models" / "idle")
    flags = ("--device", "cuda", "--transport", transport, "--poll-s", "0.1")
    with ServerProcess(
        tmp_path / "models", tmp_path / "server", *flags, module="tests.support.lost_gpu_server"
    ) as process:
        yield process


def health_of(server: ServerProcess, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service)).status)


def test_a_lost_gpu_is_unavailable_and_not_serving_and_the_process_lives(
    server: ServerProcess, lost_file: Path, tmp_path: Path
) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert np.abs(outputs_of(server.infer(IMAGES))["logits"] - NETWORK.logits(IMAGES)).max() < 1e-5
    assert "CUDAExecutionProvider" in server.log
    assert health_of(server, "") == health_of(server, "tiny") == serving
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == serving
    lost_file.touch()
    for _ in range(2):  # the one that notices, and one that comes after it
        code, text = status_of(lambda: server.infer(IMAGES))
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "CUDA failure 700" in text
        assert "restart the server" in text
    assert next(watch).status == not_serving, "who watches is told"
    assert health_of(server, "tiny") == not_serving
    assert health_of(server, "idle") == not_serving, "a model that has not run since cannot run either"
    assert not server.stub.ServerReady(pb.ServerReadyRequest()).ready
    assert server.stub.ServerLive(pb.ServerLiveRequest()).live
    state, reason = states(server, "tiny")["1"]
    assert state == "UNAVAILABLE"
    assert "the device was lost" in reason
    NETWORK.publish(tmp_path / "models" / "later")
    eventually(lambda: "later" in server.log, "the repository is still followed")
    eventually(lambda: states(server, "later")["1"][0] == "UNAVAILABLE", "nothing new runs on a lost GPU")
    assert not serves(server, "tiny", "1"), "and the lost model is not loaded again and again"
    assert server.process.poll() is None


@pytest.mark.parametrize("is_there", [True, False], ids=["a GPU that fails", "no CUDA"])
def test_cuda_that_does_not_run_the_models_fails_the_start(
    tmp_path: Path, lost_file: Path, is_there: bool
) -> None:
    if not is_there and cuda_is_present():
        pytest.skip("this onnxruntime has CUDA")
    NETWORK.publish(tmp_path / "models" / "tiny")
    lost_file.touch()
    module = "tests.support.lost_gpu_server" if is_there else "foldserve"
    command = [sys.executable, "-m", module, "serve", "--repository", str(tmp_path / "models")]
    command += ["--port", "0", "--device", "cuda"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SOURCE)
    assert ended.returncode == 1
    expected = "CUDA failure 700" if is_there else "no CUDA provider"
    assert expected in ended.stderr.splitlines()[-1]
    assert "serving on" not in ended.stdout
