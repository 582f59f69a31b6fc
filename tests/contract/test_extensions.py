"""What Triton's clients use beyond the protocol's core: streams, configuration, statistics and so on."""

from __future__ import annotations

import struct
import threading
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.server_process import DEVICE, infer_request, outputs_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.artifacts import TinyNetwork
    from tests.support.server_process import ServerProcess


def test_stream_answers_every_request_in_order(server: ServerProcess, network: TinyNetwork) -> None:
    batches = [network.random_images(1 + index % 5, seed=index) for index in range(200)]
    requests = [infer_request(images, id=str(index)) for index, images in enumerate(batches)]
    answers = list(server.stub.ModelStreamInfer(iter(requests)))
    assert [answer.infer_response.id for answer in answers] == [str(index) for index in range(200)]
    for answer, images in zip(answers, batches, strict=True):
        assert not answer.error_message
        logits = outputs_of(answer.infer_response)["logits"]
        assert np.abs(logits - network.logits(images)).max() < 1e-5


def test_stream_survives_a_bad_request(server: ServerProcess, network: TinyNetwork) -> None:
    images = network.random_images(1)
    bad = infer_request(images, "nets", id="bad")
    first, second, third = server.stub.ModelStreamInfer(
        iter([infer_request(images), bad, infer_request(images)])
    )
    assert "'nets' is not in the repository" in second.error_message
    assert second.infer_response.id == "bad"
    assert not first.error_message
    assert first.infer_response.raw_output_contents == third.infer_response.raw_output_contents


@pytest.mark.parametrize("parameters", [{}, {"triton_enable_empty_final_response": {"bool_param": True}}])
def test_stream_answers_are_marked_as_final(
    server: ServerProcess, network: TinyNetwork, parameters: dict[str, dict[str, bool]]
) -> None:
    """Triton says so in each, asked or not; clients that count answers wait for it, after errors too."""
    images = network.random_images(1)
    requests = [
        infer_request(images, parameters=parameters | {"mine": {"int64_param": 7}}),
        infer_request(images, "nets", parameters=parameters),
        infer_request(images[:, :, 1:], parameters=parameters),
        infer_request(images, parameters=parameters),
    ]
    answers = list(server.stub.ModelStreamInfer(iter(requests)))
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, False]
    for answer in answers:
        given = dict(answer.infer_response.parameters)
        assert given["triton_final_response"].bool_param
        assert "triton_enable_empty_final_response" not in given
    assert answers[0].infer_response.parameters["mine"].int64_param == 7


def test_unary_answers_are_not_marked_as_final(server: ServerProcess, network: TinyNetwork) -> None:
    parameters = {"triton_enable_empty_final_response": {"bool_param": True}}
    answer = server.infer(network.random_images(1), parameters=parameters)
    assert set(answer.parameters) == {"model_sha256"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "triton_enable_empty_final_response",
            {"string_param": "yes"},
            "is not a bool; send it as a bool_param",
        ),
        ("triton_final_response", {"bool_param": False}, "only 'triton_enable_empty_final_response' is"),
    ],
)
def test_parameters_reserved_by_triton_are_refused(
    server: ServerProcess, network: TinyNetwork, name: str, value: dict[str, object], message: str
) -> None:
    request = infer_request(network.random_images(1), parameters={name: value})
    code, text = status_of(lambda: server.stub.ModelInfer(request))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert message in text


def test_unread_stream_is_held_back_and_delays_no_other_caller(
    server: ServerProcess, network: TinyNetwork
) -> None:
    """Flow control reaches the client: of an endless stream that nobody reads only a window is taken."""
    sent = 0
    stopped = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        nonlocal sent
        message = infer_request(network.random_images(1000))
        while not stopped.is_set():
            sent += 1
            yield message

    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(requests())
        taken = -1
        give_up_s = time.monotonic() + 60
        while not sent == taken > 0 and time.monotonic() < give_up_s:
            taken = sent
            time.sleep(0.3)
            images = network.random_images(1)
            assert np.abs(outputs_of(server.infer(images))["logits"] - network.logits(images)).max() < 1e-5
        stopped.set()
        call.cancel()
        assert 0 < taken < 5000


def test_model_config_describes_how_a_model_is_run(server: ServerProcess) -> None:
    config = server.stub.ModelConfig(pb.ModelConfigRequest(name="colour")).config
    assert (config.name, config.platform, config.backend) == ("colour", "onnxruntime_onnx", "onnxruntime")
    assert (config.max_batch_size, config.default_model_filename) == (32, "model.onnx")
    (image,) = config.input
    assert (image.name, image.data_type, list(image.dims)) == ("image", pb.TYPE_UINT8, [3, 6, 10])
    assert [(output.name, list(output.dims)) for output in config.output] == [
        ("logits", [5]),
        ("probabilities", [5]),
    ]
    group = pb.ModelInstanceGroup
    assert config.instance_group[0].kind == (group.KIND_CPU if DEVICE == "cpu" else group.KIND_GPU)
    if DEVICE == "cpu":  # cuDNN takes other algorithms for other batch sizes
        assert config.parameters["batch_invariant"].string_value == "true"
    assert int(config.parameters["intra_op_threads"].string_value) >= 1  # measured
    assert status_of(lambda: server.stub.ModelConfig(pb.ModelConfigRequest(name="x")))[0].name == "NOT_FOUND"


def test_batch_invariance_is_published(server: ServerProcess) -> None:
    metadata = server.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
    assert metadata.properties["batch_invariant"] in ({"true"} if DEVICE == "cpu" else {"true", "false"})


def statistics(server: ServerProcess, version: str = "1") -> pb.ModelStatistics:
    request = pb.ModelStatisticsRequest(name="tiny", version=version)
    (entry,) = server.stub.ModelStatistics(request).model_stats
    return entry


def test_statistics_count_requests_rows_and_executions(server: ServerProcess, network: TinyNetwork) -> None:
    before = statistics(server)
    server.infer(network.random_images(5), model_version="1")
    server.infer(network.random_images(70), model_version="1")
    status_of(lambda: server.infer(network.random_images(1)[0], model_version="1"))
    after = statistics(server)
    assert (after.name, after.version) == ("tiny", "1")
    assert after.inference_count - before.inference_count == 75
    assert after.execution_count - before.execution_count == 1 + 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 2
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.inference_stats.queue.count - before.inference_stats.queue.count == 2
    assert sum(entry.compute_infer.count for entry in after.batch_stats) == after.execution_count
    assert abs(after.last_inference - time.time() * 1000) < 60_000
    for entry in (after.inference_stats, *after.batch_stats):  # perf_analyzer ends itself otherwise
        assert entry.compute_input.count == entry.compute_infer.count == entry.compute_output.count > 0
        assert entry.compute_input.ns == entry.compute_output.ns == 0


def test_statistics_of_all_models_and_of_none(server: ServerProcess) -> None:
    entries = server.stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
    assert [(entry.name, entry.version) for entry in entries] == [
        ("colour", "1"),
        ("tiny", "1"),
        ("tiny", "2"),
    ]
    code, _ = status_of(lambda: server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="nets")))
    assert code == grpc.StatusCode.NOT_FOUND


def elements(raw: bytes) -> list[str]:
    texts = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return texts


def test_classification_gives_value_index_and_label(server: ServerProcess, network: TinyNetwork) -> None:
    images = network.random_images(3)
    wanted = [{"name": "logits", "parameters": {"classification": {"int64_param": 2}}}, {"name": "logits"}]
    response = server.infer(images, outputs=wanted[:1])
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [3, 2])
    expected = [
        f"{row[index]:f}:{index}:{network.labels[index]}"
        for row in outputs_of(server.infer(images))["logits"]
        for index in np.argsort(-row)[:2]
    ]
    assert elements(response.raw_output_contents[0]) == expected


def test_classification_of_more_classes_than_there_are_gives_all(
    server: ServerProcess, network: TinyNetwork
) -> None:
    wanted = [{"name": "probabilities", "parameters": {"classification": {"int64_param": 99}}}]
    response = server.infer(network.random_images(2), outputs=wanted)
    assert list(response.outputs[0].shape) == [2, 3]
    assert len(elements(response.raw_output_contents[0])) == 6


def test_request_parameters_are_returned(server: ServerProcess, network: TinyNetwork) -> None:
    parameters = {"trace": {"string_param": "abc"}, "priority": {"int64_param": 3}}
    response = server.infer(network.random_images(1), parameters=parameters)
    assert {key: value.WhichOneof("parameter_choice") for key, value in response.parameters.items()} == {
        "trace": "string_param",
        "priority": "int64_param",
        "model_sha256": "string_param",
    }
    assert response.parameters["trace"].string_param == "abc"


def test_each_answer_names_version_and_file(server: ServerProcess, network: TinyNetwork) -> None:
    response = server.infer(network.random_images(1))
    metadata = server.stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny", version=response.model_version))
    assert response.model_version == "2"
    assert response.parameters["model_sha256"].string_param == metadata.properties["model_sha256"]
    assert len(metadata.properties["model_sha256"]) == 64


def test_too_many_parameters_are_refused(server: ServerProcess, network: TinyNetwork) -> None:
    message = infer_request(network.random_images(1))
    for index in range(1000):
        message.parameters[str(index)].bool_param = True
    code, text = status_of(lambda: server.stub.ModelInfer(message))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "1000 parameters; send at most 64" in text


@pytest.mark.parametrize(
    "timeout", [{"int64_param": -1}, {"string_param": "soon"}, {"bool_param": True}, {}], ids=str
)
def test_invalid_timeout_is_explained(
    server: ServerProcess, network: TinyNetwork, timeout: dict[str, object]
) -> None:
    code, text = status_of(lambda: server.infer(network.random_images(1), parameters={"timeout": timeout}))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "microseconds" in text


def test_long_and_zero_timeouts_do_not_expire(server: ServerProcess, network: TinyNetwork) -> None:
    for timeout_us in (0, 10_000_000):
        parameters = {"timeout": {"int64_param": timeout_us}}
        assert server.infer(network.random_images(1), parameters=parameters).model_name == "tiny"
