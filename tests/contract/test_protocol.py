"""The protocol as a plain generated stub sees it, against a real server process."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import PROVIDER, ServerProcess, infer_request, outputs_of, status_of

# Reference in float64 against float32 sums of nine products; measured 2e-6 at logits near 10.
TOLERANCE = 1e-5


@pytest.mark.parametrize("row_count", [1, 2, 7, 32, 33, 1000])
def test_any_row_count_gives_each_row_its_own_logits(
    server: ServerProcess, network: TinyNetwork, row_count: int
) -> None:
    images = network.random_images(row_count, seed=row_count)
    outputs = outputs_of(server.infer(images))
    expected = network.logits(images)
    assert np.abs(outputs["logits"] - expected).max() <= TOLERANCE
    exponentials = np.exp(expected - expected.max(axis=1, keepdims=True))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert np.abs(outputs["probabilities"] - softmax).max() <= TOLERANCE


def test_comparison_detects_one_changed_pixel(server: ServerProcess, network: TinyNetwork) -> None:
    """The twin of the test above: were the tolerance blind to a wrong image, it would prove nothing."""
    images = network.random_images(1)
    changed = images ^ np.uint8(4)
    assert np.abs(outputs_of(server.infer(changed))["logits"] - network.logits(images)).max() > 10 * TOLERANCE


def test_typed_contents_give_the_same_bytes_as_raw(server: ServerProcess, network: TinyNetwork) -> None:
    images = network.random_images(3)
    typed = infer_request(images)
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.uint_contents.extend(images.ravel().tolist())
    assert server.stub.ModelInfer(typed).raw_output_contents == server.infer(images).raw_output_contents


def test_response_names_model_version_and_request_id(server: ServerProcess, network: TinyNetwork) -> None:
    response = server.infer(network.random_images(1), id="request 7 ü")
    assert (response.model_name, response.model_version, response.id) == ("tiny", "2", "request 7 ü")


def test_named_version_answers_with_its_own_weights(server: ServerProcess) -> None:
    old = TinyNetwork(seed=1)
    images = old.random_images(2)
    response = server.infer(images, model_version="1")
    assert response.model_version == "1"
    assert np.abs(outputs_of(response)["logits"] - old.logits(images)).max() <= TOLERANCE


def test_only_requested_outputs_are_returned_in_their_order(
    server: ServerProcess, network: TinyNetwork
) -> None:
    images = network.random_images(2)
    both = server.infer(images)
    one = server.infer(images, outputs=[{"name": "probabilities"}])
    turned = server.infer(images, outputs=[{"name": "probabilities"}, {"name": "logits"}])
    assert [output.name for output in one.outputs] == ["probabilities"]
    assert one.raw_output_contents[0] == both.raw_output_contents[1]
    assert list(turned.raw_output_contents) == list(reversed(both.raw_output_contents))


def test_concurrent_callers_of_two_models_get_their_own_answers(
    server: ServerProcess, network: TinyNetwork, colour_network: TinyNetwork
) -> None:
    def ask(index: int) -> float:
        asked, name = (network, "tiny") if index % 2 else (colour_network, "colour")
        images = asked.random_images(1 + index % 40, seed=index)
        return float(np.abs(outputs_of(server.infer(images, name))["logits"] - asked.logits(images)).max())

    with ThreadPoolExecutor(16) as callers:
        assert max(callers.map(ask, range(200))) <= TOLERANCE


def test_metadata_carries_tensors_versions_and_labels(
    server: ServerProcess, colour_network: TinyNetwork
) -> None:
    answer = server.stub.ModelMetadata(pb.ModelMetadataRequest(name="colour"))
    assert (answer.name, list(answer.versions), answer.platform) == ("colour", ["1"], "onnxruntime_onnx")
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in answer.inputs] == [
        ("image", "UINT8", [-1, 3, 6, 10])
    ]
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in answer.outputs] == [
        ("logits", "FP32", [-1, 5]),
        ("probabilities", "FP32", [-1, 5]),
    ]
    assert tuple(json.loads(answer.properties["labels"])) == colour_network.labels
    assert answer.properties["channel_order"] == "RGB"
    assert answer.properties["provider"] == PROVIDER


def test_server_is_live_ready_and_described(server: ServerProcess) -> None:
    assert server.stub.ServerLive(pb.ServerLiveRequest()).live
    assert server.stub.ServerReady(pb.ServerReadyRequest()).ready
    assert server.stub.ServerMetadata(pb.ServerMetadataRequest()).name == "foldserve"


def test_model_ready_knows_models_and_versions(server: ServerProcess) -> None:
    assert server.stub.ModelReady(pb.ModelReadyRequest(name="tiny")).ready
    assert server.stub.ModelReady(pb.ModelReadyRequest(name="tiny", version="1")).ready


def test_model_that_is_not_there_is_not_ready(server: ServerProcess) -> None:
    """And no error, as with Triton: its clients wait with ModelReady for a model that is still to come."""
    for name, version in (("tiny", "9"), ("tiny", "x"), ("nets", "")):
        assert not server.stub.ModelReady(pb.ModelReadyRequest(name=name, version=version)).ready


def test_index_lists_every_version_and_nothing_hidden_or_empty(server: ServerProcess) -> None:
    index = server.stub.RepositoryIndex(pb.RepositoryIndexRequest())
    assert [(entry.name, entry.version, entry.state) for entry in index.models] == [
        ("colour", "1", "READY"),
        ("tiny", "1", "READY"),
        ("tiny", "2", "READY"),
    ]


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "tiny", "colour"])
def test_standard_health_stub_sees_server_and_models(server: ServerProcess, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(server: ServerProcess) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    request = health_pb2.HealthCheckRequest(service="nothing")
    assert status_of(lambda: stub.Check(request))[0] == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
def test_reflection_lists_and_describes_the_services(server: ServerProcess, version: str) -> None:
    ask = server.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (listed,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = [service.name for service in listed.list_services_response.service]
    assert sorted(names) == [
        "foldserve.v1.Classifier",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    for name, answer in zip(names, ask(iter(asked)), strict=True):
        file = FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
        assert [f"{file.package}.{service.name}" for service in file.service] == [name]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "inference.GRPCInferenceService/Nonsense",
            "no method '/inference.GRPCInferenceService/Nonsense'; the",
        ),
        (
            "tensorflow.serving.PredictionService/Predict",
            "the services are inference.GRPCInferenceService and",
        ),
        ("inference.GRPCInferenceService/TraceSetting", "tracing is not supported; time spent in queue"),
        ("inference.GRPCInferenceService/LogSettings", "start the server with --log-level"),
        ("inference.GRPCInferenceService/SystemSharedMemoryStatus", "send tensors in the messages"),
        ("inference.GRPCInferenceService/CudaSharedMemoryRegister", "shared memory is not supported"),
    ],
)
def test_unknown_method_is_unimplemented(server: ServerProcess, method: str, words: str) -> None:
    unary, stream = server.channel.unary_unary(f"/{method}"), server.channel.stream_stream(f"/{method}")
    for call in (lambda: unary(b""), lambda: unary(bytes(2**20)), lambda: list(stream(iter([b"", b""])))):
        code, text = status_of(call)
        assert code == grpc.StatusCode.UNIMPLEMENTED
        assert words in text
