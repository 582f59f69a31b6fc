"""Requests that a machine made up: both transports answer each alike, with a status of the caller's fault."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foldserve.serving.pb import classifier_pb2
from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.artifacts import TinyNetwork
from tests.support.server_process import ServerProcess, outputs_of
from tests.support.strategies import PIXELS, SHAPE, classify_requests, damaged, infer_requests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

NETWORK = TinyNetwork()
INFER, CLASSIFY = "/inference.GRPCInferenceService/ModelInfer", "/foldserve.v1.Classifier/Classify"
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
CONTROL = ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex")
# What a caller's mistake may be answered with; anything else would be ours.
CALLERS_FAULT = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"}

quick = settings(max_examples=100, suppress_health_check=list(HealthCheck))
thorough = settings(max_examples=3000, suppress_health_check=list(HealthCheck))


class BothTransports:
    """Two servers over one repository."""

    def __init__(self, servers: list[ServerProcess]) -> None:
        self.servers = servers

    def ask(self, path: str, content: bytes) -> tuple[str, str, bytes]:
        """Return the status, message and answer that both transports give."""
        first, second = (_ended(server.channel, path, content) for server in self.servers)
        assert first == second, "the transports disagree"
        return first

    def ask_stream(self, path: str, contents: list[bytes]) -> list[bytes]:
        """Return the answers that both transports give, one a request."""
        first, second = (
            [
                _comparable(path, answer)
                for answer in server.channel.stream_stream(path)(iter(contents), timeout=30)
            ]
            for server in self.servers
        )
        assert first == second, "the transports disagree"
        assert len(first) == len(contents)
        return first

    def assert_serve(self) -> None:
        images = NETWORK.random_images(2)
        for server in self.servers:
            assert np.abs(outputs_of(server.infer(images))["logits"] - NETWORK.logits(images)).max() < 1e-5
            assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothTransports]:
    folder = tmp_path_factory.mktemp("both")
    NETWORK.publish(folder / "models" / "tiny")
    with (
        ServerProcess(folder / "models", folder / "grpcio", "--transport", "grpcio") as grpcio,
        ServerProcess(folder / "models", folder / "native", "--transport", "native") as native,
    ):
        servers = BothTransports([grpcio, native])
        yield servers
        servers.assert_serve()


def _ended(channel: grpc.Channel, path: str, content: bytes) -> tuple[str, str, bytes]:
    try:
        answer = channel.unary_unary(path)(content, timeout=30)
    except grpc.RpcError as error:
        return error.code().name, error.details() or "", b""
    return "OK", "", _comparable(path, answer)


def _comparable(path: str, answer: bytes) -> bytes:
    """Return an answer without what may differ: times, and the order of a map's entries."""
    if path.endswith("ModelStatistics"):
        return b""
    if path == CLASSIFY:
        message = classifier_pb2.ClassifyResponse.FromString(answer)
        message.ClearField("queue_us")
        message.ClearField("compute_us")
        return message.SerializeToString(deterministic=True)
    kinds = {INFER: pb.ModelInferResponse, INFER_STREAM: pb.ModelStreamInferResponse}
    return kinds[path].FromString(answer).SerializeToString(deterministic=True) if path in kinds else answer


def check_infer(both: BothTransports, content: bytes) -> None:
    status, text, answer = both.ask(INFER, content)
    if status != "OK":
        check_refusal(status, text)
        return
    request = pb.ModelInferRequest.FromString(content)
    response = pb.ModelInferResponse.FromString(answer)
    assert response.id == request.id
    # The server adds whose answer it is, whatever the caller sent by that name.
    added = {"model_sha256"}
    assert {key: response.parameters[key] for key in response.parameters.keys() - added} == {
        key: request.parameters[key] for key in request.parameters.keys() - added
    }
    assert [output.name for output in response.outputs] == (
        [output.name for output in request.outputs] or ["logits", "probabilities"]
    )
    rows = request.inputs[0].shape[0]
    raw = b"".join(request.raw_input_contents) or bytes(request.inputs[0].contents.uint_contents)
    assert len(raw) == rows * PIXELS
    images = np.frombuffer(raw, np.uint8).reshape(rows, *SHAPE)
    for output, values in zip(response.outputs, response.raw_output_contents, strict=True):
        if (output.name, output.datatype) == ("logits", "FP32"):
            logits = np.frombuffer(values, np.float32).reshape(rows, -1)
            assert np.abs(logits - NETWORK.logits(images)).max() < 1e-5


def check_refusal(status: str, text: str) -> None:
    assert status in CALLERS_FAULT, text
    assert 10 < len(text) <= 2001
    assert "\n" not in text


def check_stream(both: BothTransports, contents: list[bytes]) -> None:
    for content, answer in zip(contents, both.ask_stream(INFER_STREAM, contents), strict=True):
        message = pb.ModelStreamInferResponse.FromString(answer)
        status, text, _ = both.ask(INFER, content)
        assert message.error_message == text, "a stream says what a single call says"
        assert bool(message.error_message) == (status != "OK")


@given(message=infer_requests())
@quick
def test_random_inference_is_answered_alike(both: BothTransports, message: Message) -> None:
    check_infer(both, message.SerializeToString())


@given(content=damaged(infer_requests()))
@quick
def test_damaged_inference_is_answered_alike(both: BothTransports, content: bytes) -> None:
    check_infer(both, content)


@given(
    content=st.one_of(
        classify_requests.map(lambda made: made.SerializeToString()), damaged(classify_requests)
    )
)
@quick
def test_random_classification_is_answered_alike(both: BothTransports, content: bytes) -> None:
    status, text, _ = both.ask(CLASSIFY, content)
    if status != "OK":
        check_refusal(status, text)


@given(contents=st.lists(damaged(infer_requests()), max_size=6))
@settings(quick, max_examples=10)
def test_random_streams_are_answered_like_unary_calls(both: BothTransports, contents: list[bytes]) -> None:
    check_stream(both, contents)


@given(path=st.sampled_from(CONTROL), content=st.binary(max_size=30))
@quick
def test_random_management_is_answered_alike(both: BothTransports, path: str, content: bytes) -> None:
    status, text, _ = both.ask(f"/inference.GRPCInferenceService/{path}", content)
    if status != "OK":
        check_refusal(status, text)


@pytest.mark.slow
@given(
    content=st.one_of(infer_requests().map(lambda made: made.SerializeToString()), damaged(infer_requests()))
)
@thorough
def test_thousands_of_random_requests_are_answered_alike(both: BothTransports, content: bytes) -> None:
    check_infer(both, content)


@pytest.mark.slow
@given(contents=st.lists(damaged(infer_requests()), min_size=20, max_size=60))
@settings(quick, max_examples=20)
def test_random_requests_do_not_affect_valid_ones(both: BothTransports, contents: list[bytes]) -> None:
    """Eight callers send random requests, two valid ones, and the valid ones are answered rightly."""

    def refused_or_not(server: ServerProcess, content: bytes) -> str:
        return _ended(server.channel, INFER, content)[0]

    def difference(server: ServerProcess, seed: int) -> float:
        images = NETWORK.random_images(1 + seed % 40, seed=seed)
        return float(np.abs(outputs_of(server.infer(images))["logits"] - NETWORK.logits(images)).max())

    for server in both.servers:
        with ThreadPoolExecutor(8) as callers, ThreadPoolExecutor(2) as sound_callers:
            sound = [sound_callers.submit(difference, server, seed) for seed in range(40)]
            ended = [callers.submit(refused_or_not, server, content) for content in contents]
        assert {each.result() for each in ended} <= CALLERS_FAULT | {"OK"}
        assert max(each.result() for each in sound) < 1e-5
