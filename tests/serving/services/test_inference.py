"""What becomes of calls that nobody waits for any more, without a wire in between."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from foldserve.runtime.model_settings import ModelSettings
from foldserve.serving.errors import CancelledError, DeadlineExceededError
from foldserve.serving.pb import classifier_pb2
from foldserve.serving.repository.repository import ModelRepository
from foldserve.serving.server_state import Lifecycle
from foldserve.serving.services.inference import InferenceService
from foldserve.serving.services.requests import ImageRequest, TensorRequest
from tests.support.encoded_images import encode
from tests.support.server_process import infer_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from foldserve.serving.services.requests import InferenceRequest, Reply
    from tests.support.artifacts import TinyNetwork


@pytest.fixture
def repository(tmp_path: Path, network: TinyNetwork) -> Iterator[ModelRepository]:
    network.publish(tmp_path / "tiny")
    repository = ModelRepository(tmp_path, ModelSettings(device="cpu"))
    repository.load_all()
    yield repository
    repository.close(grace_s=5)


def test_expired_and_cancelled_requests_are_counted_and_never_run(
    repository: ModelRepository, network: TinyNetwork
) -> None:
    """For pixels and encoded images; the valid request after them is answered, and only its rows are run."""
    pixels = infer_request(network.random_images(3))
    file = encode(network.random_images(1)[0, 0])
    images = classifier_pb2.ClassifyRequest(model_name="tiny", images=[file])
    expired = [TensorRequest(message=pixels, deadline_s=0.0), ImageRequest(message=images, deadline_s=0.0)]
    cancelled = [TensorRequest(message=pixels, cancelled=True), ImageRequest(message=images, cancelled=True)]
    sound = TensorRequest(message=pixels)
    replies: dict[int, list[Reply]] = {}
    replied = threading.Semaphore(0)

    def on_reply(call: InferenceRequest, reply: Reply) -> None:
        replies.setdefault(id(call), []).append(reply)
        replied.release()

    inference = InferenceService(
        repository.index, Lifecycle(), max_decoding_bytes=10**6, max_image_pixels=10**6
    )
    inference.submit([*expired, *cancelled, sound], on_reply)
    assert all(replied.acquire(timeout=20) for _ in range(5))
    inference.close()
    model = repository.index.find("tiny", "")
    for call in expired:
        (reply,) = replies[id(call)]
        assert isinstance(reply, DeadlineExceededError)
    for call in cancelled:
        (reply,) = replies[id(call)]
        assert isinstance(reply, CancelledError)
    (reply,) = replies[id(sound)]
    assert isinstance(reply, bytes)
    counted = model.statistics.to_message("tiny", "1")
    assert counted.inference_stats.fail.count == 4
    assert counted.inference_stats.success.count == 1
    assert counted.inference_count == 3
