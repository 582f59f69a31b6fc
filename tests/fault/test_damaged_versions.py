"""Damaged versions are refused with a reason, and the valid model beside them answers."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from typing import TYPE_CHECKING

import grpc
import numpy as np
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.endings import ENDINGS, end_with
from tests.support.server_process import ServerProcess, infer_request, outputs_of, run_cli, status_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def change_a_byte(version: Path) -> None:
    content = bytearray((version / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (version / "model.onnx").write_bytes(content)


def truncate(version: Path) -> None:
    content = (version / "model.onnx").read_bytes()
    (version / "model.onnx").write_bytes(content[: len(content) // 2])


def mend_hashes(version: Path) -> None:
    manifest = json.loads((version / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        facts["sha256"] = hashlib.sha256((version / name).read_bytes()).hexdigest()
    (version / "manifest.json").write_text(json.dumps(manifest))


def flip_exponent_bit(version: Path, bit: int = 27) -> None:
    """Flip a bit of the first kernel weight's exponent, and mend the hash: only the answers can tell."""
    model = onnx.load(version / "model.onnx")
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    weights = np.frombuffer(kernel.raw_data, np.uint32).copy()
    weights[0] ^= np.uint32(1 << bit)
    kernel.raw_data = weights.tobytes()
    (version / "model.onnx").write_bytes(model.SerializeToString())
    mend_hashes(version)


def make_weight_nan(version: Path) -> None:
    model = onnx.load(version / "model.onnx")
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "matrix")
    weights = np.frombuffer(kernel.raw_data, np.float32).copy()
    weights[0] = np.nan
    kernel.raw_data = weights.tobytes()
    (version / "model.onnx").write_bytes(model.SerializeToString())
    mend_hashes(version)


def set_schema(version: Path, schema: int) -> None:
    manifest = json.loads((version / "manifest.json").read_text())
    (version / "manifest.json").write_text(json.dumps(manifest | {"schema_version": schema}))


def cast_probabilities(version: Path) -> None:
    model = onnx.load(version / "model.onnx")
    (softmax,) = [node for node in model.graph.node if "probabilities" in node.output]
    softmax.output[0] = "floats"
    model.graph.node.append(
        onnx.helper.make_node("Cast", ["floats"], ["probabilities"], to=onnx.TensorProto.DOUBLE)
    )
    model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    (version / "model.onnx").write_bytes(model.SerializeToString())
    mend_hashes(version)


def truncate_and_mend(version: Path) -> None:
    truncate(version)
    mend_hashes(version)


def swap_golden(version: Path) -> None:
    other = TinyNetwork(seed=99).publish(version.parents[1] / ".elsewhere")
    shutil.copy(other / "golden.npz", version / "golden.npz")
    mend_hashes(version)


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "changed-byte": (change_a_byte, ["model.onnx is not the file that was exported", "SHA-256"]),
    "truncated": (truncate, ["model.onnx is not the file that was exported", "SHA-256"]),
    "truncated-hash-mended": (truncate_and_mend, ["cannot load the model"]),
    "flipped-exponent-bit": (
        flip_exponent_bit,
        ["of 32 golden pairs are not reproduced", "largest logit difference is", "tolerance is 0.0001"],
    ),
    "nan-weight": (make_weight_nan, ["32 of 32 golden pairs", "is NaN"]),
    "others-golden-pairs": (swap_golden, ["32 of 32 golden pairs"]),
    "no-manifest": (lambda version: (version / "manifest.json").unlink(), ["manifest.json is missing"]),
    "no-golden-pairs": (lambda version: (version / "golden.npz").unlink(), ["golden.npz is missing"]),
    "manifest-not-json": (
        lambda version: (version / "manifest.json").write_text('{"schema_ver'),
        ["manifest.json is malformed"],
    ),
    "future-schema": (lambda version: set_schema(version, 2), ["schema 2", "upgrade foldserve"]),
    "half-copied": (lambda version: (version / "model.onnx").unlink(), ["model.onnx is missing"]),
    "probabilities-in-doubles": (cast_probabilities, ["they must include probabilities FP32"]),
}
# Logits that are right, whatever callers see beside them.
DAMAGES |= {
    f"probabilities-{ending.replace(' ', '-')}": (
        partial(end_with, ending=ending),
        ["are not the softmax of their logits over the classes"],
    )
    for ending in ENDINGS
}
DAMAGES["probabilities-a-class-less"] = (
    partial(end_with, ending="a class less"),
    ["the model's probabilities are float32 [32, 2] for 32 images, expected float32 [32, 3]"],
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    TinyNetwork().publish(folder / "tiny")
    for name, (damage, _) in DAMAGES.items():
        damage(TinyNetwork(seed=5).publish(folder / name))
    # A valid first version beside a damaged second: the first must still serve.
    TinyNetwork().publish(folder / "updated")
    change_a_byte(TinyNetwork(seed=6).publish(folder / "updated"))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory, transport: str):  # type: ignore[no-untyped-def]
    with ServerProcess(repository, tmp_path_factory.mktemp("server"), "--transport", transport) as process:
        yield process


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_version_is_refused_with_its_reason(server: ServerProcess, name: str) -> None:
    reasons = DAMAGES[name][1]
    images = TinyNetwork().random_images(1)
    code, text = status_of(lambda: server.infer(images, name))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert all(reason in text for reason in reasons), text
    assert not server.stub.ModelReady(pb.ModelReadyRequest(name=name)).ready
    index = {entry.name: entry for entry in server.stub.RepositoryIndex(pb.RepositoryIndexRequest()).models}
    assert index[name].state == "UNAVAILABLE"
    assert all(reason in index[name].reason for reason in reasons)
    assert all(reason in server.log for reason in reasons)
    health = health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(service=name))
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_valid_model_beside_damaged_ones_is_served(server: ServerProcess) -> None:
    network = TinyNetwork()
    images = network.random_images(9)
    assert np.abs(outputs_of(server.infer(images))["logits"] - network.logits(images)).max() < 1e-5
    assert server.stub.ServerReady(pb.ServerReadyRequest()).ready


def test_older_version_answers_if_the_newest_is_damaged(server: ServerProcess) -> None:
    network = TinyNetwork()
    images = network.random_images(2)
    assert server.infer(images, "updated").model_version == "1"
    request = infer_request(images, "updated", model_version="2")
    code, text = status_of(lambda: server.stub.ModelInfer(request))
    assert code == grpc.StatusCode.UNAVAILABLE
    assert "SHA-256" in text


@pytest.mark.parametrize("bit", range(23, 31))
def test_flipped_exponent_bit_of_any_weight_is_detected(tmp_path: Path, bit: int) -> None:
    from foldserve.errors import ArtifactError
    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.runtime.verified_model import open_verified

    version = TinyNetwork(seed=5).publish(tmp_path / "tiny")
    settings = ModelSettings(device="cpu", intra_op_threads=1)
    assert open_verified(version, settings).golden_count == 32
    flip_exponent_bit(version, bit)
    with pytest.raises(ArtifactError, match="golden pairs are not reproduced"):
        open_verified(version, settings)


def test_verify_command_names_each_failure_and_exits_1(repository: Path) -> None:
    ended = run_cli("models", "verify", "--repository", str(repository), "--device", "cpu")
    assert ended.returncode == 1
    lines = {tuple(line.split()[:3]) for line in ended.stdout.splitlines()}
    assert ("tiny", "1", "ok") in lines
    assert ("updated", "1", "ok") in lines
    assert {(name, "1", "FAILED") for name in DAMAGES} <= lines


def test_server_without_valid_versions_stays_up_and_reports_it(tmp_path: Path) -> None:
    change_a_byte(TinyNetwork().publish(tmp_path / "models" / "tiny"))
    with ServerProcess(tmp_path / "models", tmp_path / "server") as server:
        assert server.stub.ServerLive(pb.ServerLiveRequest()).live
        assert not server.stub.ServerReady(pb.ServerReadyRequest()).ready
        assert "no model serves" in server.log
        health = health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
