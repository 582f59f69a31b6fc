"""Streams whose client sends and sends, and does not read: what the server holds for it is bounded."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.pb import classifier_pb2
from tests.support.artifacts import TinyNetwork
from tests.support.encoded_images import encode
from tests.support.server_process import ServerProcess, infer_request, outputs_of

if TYPE_CHECKING:
    from collections.abc import Iterator

NETWORK = TinyNetwork()
MIB = 1024 * 1024
INFER_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
CLASSIFY_STREAM = "/foldserve.v1.Classifier/ClassifyStream"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("streams")
    NETWORK.publish(folder / "models" / "tiny")
    with ServerProcess(folder / "models", folder / "server", "--transport", transport) as process:
        yield process


def resident_mib(server: ServerProcess) -> float:
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    )
    return int(fields["VmRSS"].split()[0]) / 1024


class UnreadStream:
    """A stream of one message again and again, none of whose answers is read, on a connection of its own."""

    def __init__(self, server: ServerProcess, path: str, content: bytes) -> None:
        self.sent_count = 0
        self._content = content
        self._stopped = threading.Event()
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(server.address, options=options)
        self.answers = self._channel.stream_stream(path)(self._requests())

    def _requests(self) -> Iterator[bytes]:
        while not self._stopped.is_set():
            self.sent_count += 1
            yield self._content

    def wait_until_held(self) -> int:
        """Return how many messages were sent when for a second and a half no further one was taken."""
        give_up_s = time.monotonic() + 60
        seen, unchanged = -1, 0
        while unchanged < 3 and time.monotonic() < give_up_s:
            time.sleep(0.5)
            unchanged = unchanged + 1 if seen == self.sent_count > 0 else 0
            seen = self.sent_count
        return seen

    def close(self) -> None:
        self._stopped.set()
        self.answers.cancel()
        self._channel.close()


def large_message() -> bytes:
    """An image, and an id of 4 MiB: large both ways, and no work for the model."""
    return infer_request(NETWORK.random_images(1), id="x" * 4 * MIB).SerializeToString()


def test_large_messages_of_streams_that_nobody_reads_are_bounded_in_bytes(server: ServerProcess) -> None:
    """The window of 64 answers alone would be 256 MiB a stream."""
    before_mib = resident_mib(server)
    streams = [UnreadStream(server, INFER_STREAM, large_message()) for _ in range(2)]
    try:
        taken = [stream.wait_until_held() for stream in streams]
        grown_mib = resident_mib(server) - before_mib
        images = NETWORK.random_images(1)
        assert np.abs(outputs_of(server.infer(images))["logits"] - NETWORK.logits(images)).max() < 1e-5
    finally:
        for stream in streams:
            stream.close()
    assert all(0 < count < 40 for count in taken), (taken, grown_mib)
    assert grown_mib < 2 * 100, grown_mib


@pytest.mark.slow
def test_many_small_requests_of_a_stream_that_nobody_reads_are_bounded(server: ServerProcess) -> None:
    """An image a request, answered at once: only what fits the connection's own buffers is taken."""
    before_mib = resident_mib(server)
    message = classifier_pb2.ClassifyRequest(
        model_name="tiny", images=[encode(NETWORK.random_images(1)[0, 0])], id="x" * 1000
    )
    stream = UnreadStream(server, CLASSIFY_STREAM, message.SerializeToString())
    try:
        taken = stream.wait_until_held()
        grown_mib = resident_mib(server) - before_mib
    finally:
        stream.close()
    assert 0 < taken < 50_000
    assert grown_mib < 100, grown_mib


def test_held_back_stream_continues_when_its_client_reads(server: ServerProcess) -> None:
    stream = UnreadStream(server, INFER_STREAM, large_message())
    try:
        taken = stream.wait_until_held()
        for _ in range(taken + 5):
            assert len(next(stream.answers)) > 4 * MIB
    finally:
        stream.close()


@pytest.mark.parametrize("path", [INFER_STREAM, CLASSIFY_STREAM])
def test_an_empty_stream_ends(server: ServerProcess, path: str) -> None:
    assert list(server.channel.stream_stream(path)(iter([]))) == []
