"""Images that take long to decode, or for ever: others are answered, and the server ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from PIL import Image

from foldserve.serving.pb import classifier_pb2, classifier_pb2_grpc
from tests.support.artifacts import TinyNetwork
from tests.support.crafted import encode, jpeg_of_scans
from tests.support.server_process import ServerProcess, status_of

if TYPE_CHECKING:
    from pathlib import Path

NETWORK = TinyNetwork(seed=1)
GOOD = encode(Image.fromarray(NETWORK.random_images(1)[0, 0]))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    NETWORK.publish(folder / "tiny")
    return folder


def ask(image: bytes) -> classifier_pb2.ClassifyRequest:
    return classifier_pb2.ClassifyRequest(model_name="tiny", images=[image])


def test_endless_scans_are_refused_and_other_images_answered(
    repository: Path, tmp_path: Path, transport: str
) -> None:
    """Images with too many scans and images within the limit, from more callers than threads."""
    with ServerProcess(repository, tmp_path / "server", "--transport", transport) as server:
        stub = classifier_pb2_grpc.ClassifierStub(server.channel)
        refused, long = jpeg_of_scans(8000, 5000), jpeg_of_scans(8000, 30)
        calls = [stub.Classify.future(ask(long), timeout=60) for _ in range(6)]
        code, text = status_of(lambda: stub.Classify(ask(refused), timeout=60))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "scans, which takes too long to decode" in text
        for _ in range(10):
            answer = stub.Classify(ask(GOOD), timeout=60)
            assert len(answer.results) == 1
        for call in calls:
            call.cancel()
        server.process.terminate()
        assert server.process.wait(timeout=60) == 0
        assert "drained" in server.log


def test_server_ends_during_endless_decoding(repository: Path, tmp_path: Path, transport: str) -> None:
    flags = ("--transport", transport, "--grace-period-s", "0.5")
    module = "tests.support.stuck_decoder_server"
    with ServerProcess(repository, tmp_path / "server", *flags, module=module) as server:
        stub = classifier_pb2_grpc.ClassifierStub(server.channel)
        endless = encode(Image.fromarray(np.zeros((8, 77), np.uint8)))
        call = stub.Classify.future(ask(endless), timeout=60)
        answer = server.infer(NETWORK.random_images(1))
        assert answer.model_name == "tiny"
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0
        assert "drained" in server.log
        assert status_of(call.result)[0] in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
