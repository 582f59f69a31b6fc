"""Limits at the wire: each is met by a real client, refused as documented, and the next call is answered."""

from __future__ import annotations

import io
import re
import socket
import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image

from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import InvalidArgumentError
from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.repository_changes import eventually
from tests.support.server_process import ServerProcess, infer_request, outputs_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.artifacts import TinyNetwork

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
MIB = 2**20
FLAGS = ("--max-message-mib", "1", "--max-metadata-kib", "4", "--max-concurrent-streams", "2")
FLAGS += ("--max-image-pixels", "100", "--no-reflection")
# A client's first bytes: the preface and an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture(scope="module", params=["grpcio", "native"])
def limited(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp(f"limited-{request.param}")
    with ServerProcess(repository, folder, "--transport", request.param, *FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def counting(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With a limit on connections, for which auto leaves native."""
    with ServerProcess(repository, tmp_path_factory.mktemp("counting"), "--max-connections", "4") as server:
        yield server


def assert_serves(server: ServerProcess, network: TinyNetwork) -> None:
    images = network.random_images(2)
    assert np.abs(outputs_of(server.infer(images))["logits"] - network.logits(images)).max() < 1e-5


def connect(server: ServerProcess, content: bytes = PREFACE) -> socket.socket:
    host, _, port = server.address.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(content)
    return connection


def seconds_until_closed(server: ServerProcess, content: bytes = PREFACE, most_s: float = 30) -> float:
    """Return how long a connection lasts, from before it is made; TimeoutError after ``most_s``."""
    started_s = time.monotonic()
    connection = connect(server, content)
    connection.settimeout(most_s)
    while True:
        try:
            if not connection.recv(4096):
                break
        except ConnectionError:
            break
    connection.close()
    return time.monotonic() - started_s


def test_messages_over_the_limit_are_refused(limited: ServerProcess, network: TinyNetwork) -> None:
    assert "messages of up to 1 MiB are accepted" in limited.log
    for rows in (MIB // 64, 2 * MIB // 64 - 10):
        too_large = infer_request(np.zeros((rows, 1, 8, 8), np.uint8))
        code, text = status_of(lambda given=too_large: limited.stub.ModelInfer(given))  # type: ignore[misc]
        assert code == EXHAUSTED
        assert f"at most {MIB}:" in text
        assert "--max-message-mib" in text
    far_too_large = infer_request(np.zeros((4 * MIB // 64, 1, 8, 8), np.uint8))
    assert status_of(lambda: limited.stub.ModelInfer(far_too_large))[0] == EXHAUSTED
    assert_serves(limited, network)


def test_metadata_over_the_limit_is_refused(limited: ServerProcess, network: TinyNetwork) -> None:
    """Each transport's own refusal, before any code of ours: native's is HTTP status 431."""
    request = infer_request(network.random_images(1))
    limited.stub.ModelInfer(request, metadata=(("note", "x" * 3000),))
    for size in (4500, 12_000):
        metadata = (("note", "x" * size),)
        code, text = status_of(lambda given=metadata: limited.stub.ModelInfer(request, metadata=given))  # type: ignore[misc]
        assert code == EXHAUSTED or "431" in text
    assert_serves(limited, network)


def test_streams_over_the_limit_wait(limited: ServerProcess, network: TinyNetwork) -> None:
    with grpc.insecure_channel(limited.address) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
        )
        stream = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
        )
        request = infer_request(network.random_images(1))
        open_streams = [stream(Unending(request)) for _ in range(2)]
        for answers in open_streams:
            next(answers)  # answered: the stream is open, and stays so
        code, _ = status_of(lambda: infer(request, timeout=1.0))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert_serves(limited, network)  # over another connection
        open_streams[0].cancel()
        assert infer(request, timeout=20.0)
        open_streams[1].cancel()


class Unending:
    """One request, and never the end."""

    def __init__(self, request: pb.ModelInferRequest) -> None:
        self._requests = [request]

    def __iter__(self) -> Unending:
        return self

    def __next__(self) -> pb.ModelInferRequest:
        while not self._requests:
            time.sleep(0.05)
        return self._requests.pop()


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "png")
    return file.getvalue()


def test_images_over_the_pixel_limit_are_refused(limited: ServerProcess) -> None:
    with Client(limited.address) as client:
        assert client.classify("tiny", [png(10, 10)]).labels
        with pytest.raises(InvalidArgumentError, match="image 1: the image has 11x10 pixels; at most 100"):
            client.classify("tiny", [png(10, 10), png(11, 10)])


def test_parameters_over_the_limit_are_refused(limited: ServerProcess, network: TinyNetwork) -> None:
    parameters = {f"p{index}": {"int64_param": index} for index in range(65)}
    request = infer_request(network.random_images(1), parameters=parameters)
    code, text = status_of(lambda: limited.stub.ModelInfer(request))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "65 parameters; send at most 64" in text


def test_reflection_can_be_switched_off(limited: ServerProcess) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(limited.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    code, _ = status_of(lambda: list(stub.ServerReflectionInfo(iter([request]))))
    assert code == grpc.StatusCode.UNIMPLEMENTED


def peak_bytes(server: ServerProcess) -> int:
    """Return the most memory that the server has held so far."""
    from pathlib import Path

    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer", "ModelMetadata"])
def test_decompression_bomb_is_refused_and_takes_no_memory(
    limited: ServerProcess, network: TinyNetwork, method: str
) -> None:
    """64 MB in 64 kB. What native answers itself it unpacks first, whatever it becomes: see SECURITY.md."""
    before_bytes = peak_bytes(limited)
    path = f"/inference.GRPCInferenceService/{method}"
    bomb = bytes(64 * MIB)
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(
        limited.address, options=options, compression=grpc.Compression.Gzip
    ) as channel:
        if method == "ModelStreamInfer":
            answer = next(iter(channel.stream_stream(path)(iter([bomb]))))
            text = pb.ModelStreamInferResponse.FromString(answer).error_message
        else:
            code, text = status_of(lambda: channel.unary_unary(path)(bomb))
            assert code == EXHAUSTED
    assert "--max-message-mib" in text
    if method != "ModelInfer" or "transport native" not in limited.log:
        assert f"decompress to more than {MIB}" in text
        assert peak_bytes(limited) - before_bytes < 24 * MIB
    assert_serves(limited, network)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_answered(
    server: ServerProcess, network: TinyNetwork, compression: grpc.Compression
) -> None:
    """Everything that is asked: unary, in a stream, of the model, by reflection. Native has no deflate."""
    images = np.zeros((500, 1, 8, 8), np.uint8)
    if compression == grpc.Compression.Deflate and "transport native" in server.log:
        call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        code, _ = status_of(lambda: call(bytes(1000), compression=compression))
        assert code == grpc.StatusCode.UNIMPLEMENTED
        return
    with grpc.insecure_channel(server.address, compression=compression) as channel:
        from foldserve.serving.pb import open_inference_pb2_grpc

        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        expected = network.logits(images)
        response = stub.ModelInfer(infer_request(images))
        assert np.abs(outputs_of(response)["logits"] - expected).max() < 1e-5
        (streamed,) = stub.ModelStreamInfer(iter([infer_request(images)]))
        assert np.abs(outputs_of(streamed.infer_response)["logits"] - expected).max() < 1e-5
        name = "tiny" + " " * 1000
        code, text = status_of(lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name=name)))
        assert code == grpc.StatusCode.NOT_FOUND
        assert "'tiny  " in text
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(host="h" * 1000, list_services="")
        (listed,) = reflection.ServerReflectionInfo(iter([asked]))
        assert listed.list_services_response.service


def test_connections_over_the_limit_are_closed(counting: ServerProcess, network: TinyNetwork) -> None:
    assert "cannot do --max-connections" in counting.log
    held = [connect(counting) for _ in range(8)]
    # Four are taken, one of them perhaps by the caller that is there.
    eventually(lambda: sum(map(is_closed, held)) >= 4, "connections over the limit are closed")
    assert sum(map(is_closed, held)) < 8
    for connection in held:
        connection.close()
    # The limit counts connections that are just being closed: until then it refuses.
    with Client(counting.address, connect_timeout_s=20.0) as client:
        images = network.random_images(2)
        assert np.abs(client.infer("tiny", images)["logits"] - network.logits(images)).max() < 1e-5


def is_closed(connection: socket.socket) -> bool:
    """Tell whether the server has closed a connection."""
    connection.settimeout(0.05)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_idle_connections_are_closed_and_calls_go_on(
    repository: Path, tmp_path: Path, network: TinyNetwork
) -> None:
    with (
        ServerProcess(repository, tmp_path / "server", "--max-connection-idle-s", "1") as server,
        Client(server.address) as client,
    ):
        assert "cannot do --max-connection-idle-s" in server.log
        for _ in range(2):
            assert client.index()
            assert seconds_until_closed(server) > 0.2


def test_old_connections_are_closed_without_a_failed_call(
    repository: Path, tmp_path: Path, network: TinyNetwork
) -> None:
    """Several ages of a client's connection: it is reopened each time, and all calls are answered."""
    states: list[grpc.ChannelConnectivity] = []
    with ServerProcess(repository, tmp_path / "server", "--max-connection-age-s", "0.5") as server:
        assert "cannot do --max-connection-age-s" in server.log
        server.channel.subscribe(states.append)
        give_up_s = time.monotonic() + 30
        while states.count(grpc.ChannelConnectivity.READY) < 4:
            assert_serves(server, network)
            assert time.monotonic() < give_up_s, f"the connection stayed: {states}"
        server.channel.unsubscribe(states.append)


@pytest.mark.slow
def test_silent_connection_is_closed(counting: ServerProcess, network: TinyNetwork) -> None:
    """After twenty seconds, not gRPC's two minutes."""
    assert seconds_until_closed(counting, content=b"", most_s=90) > 10
    assert_serves(counting, network)
