"""Classify, BYTES and LocalModel prepare pictures by the artifact's rule: older ones answer as before."""

from __future__ import annotations

import io
import threading
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve import LocalModel
from foldserve.imaging import ImageSpec, prepare_image
from foldserve.runtime.model_settings import ModelSettings
from foldserve.serving.pb import classifier_pb2
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.repository.repository import ModelRepository
from foldserve.serving.server_state import Lifecycle
from foldserve.serving.services.inference import InferenceService
from foldserve.serving.services.requests import ImageRequest, TensorRequest
from tests.support.artifacts import TinyNetwork
from tests.support.encoded_images import as_elements, photograph
from tests.support.server_process import infer_request, outputs_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from foldserve.serving.services.requests import InferenceRequest, Reply

SPECS = {
    "full": ImageSpec("RGB", 8, 8, 8, "full"),
    "scaled": ImageSpec("RGB", 8, 8, 8, "scaled"),
    "shorter-side": ImageSpec("RGB", 8, 12, 12, "scaled"),
    "crop": ImageSpec("RGB", 8, 12, 12, "scaled", "crop"),
    "pad": ImageSpec("RGB", 8, 8, 8, "scaled", "pad"),
    "stretch": ImageSpec("RGB", 8, 8, 8, "scaled", "stretch"),
}


def jpeg() -> bytes:
    buffer = io.BytesIO()
    photograph(331, 243).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def inference(tmp_path: Path) -> Iterator[InferenceService]:
    for rule, spec in SPECS.items():
        TinyNetwork(image=spec).publish(tmp_path / rule)
    repository = ModelRepository(tmp_path, ModelSettings(device="cpu"))
    repository.load_all()
    service = InferenceService(
        repository.index, Lifecycle(), max_decoding_bytes=10**7, max_image_pixels=10**6
    )
    yield service
    service.close()
    repository.close(grace_s=5)


def ask(inference: InferenceService, request: InferenceRequest) -> bytes:
    replies: list[Reply] = []
    replied = threading.Event()

    def on_reply(_: InferenceRequest, reply: Reply) -> None:
        replies.append(reply)
        replied.set()

    inference.submit([request], on_reply)
    assert replied.wait(60)
    (reply,) = replies
    assert isinstance(reply, bytes), reply
    return reply


def test_each_version_prepares_pictures_by_its_own_rule(inference: InferenceService, tmp_path: Path) -> None:
    file, logits = jpeg(), {}
    (tmp_path / "picture.jpg").write_bytes(file)
    for rule, spec in SPECS.items():
        pixels = prepare_image(file, spec)[np.newaxis]
        as_pixels = TensorRequest(message=infer_request(pixels, rule))
        message = pb.ModelInferRequest(
            model_name=rule,
            inputs=[{"name": "image", "datatype": "BYTES", "shape": [1]}],
            raw_input_contents=[as_elements([file])],
        )
        answers = [ask(inference, request) for request in (as_pixels, TensorRequest(message=message))]
        expected, answered = (outputs_of(pb.ModelInferResponse.FromString(answer)) for answer in answers)
        assert np.array_equal(answered["logits"], expected["logits"])
        logits[rule] = answered["logits"]
        with LocalModel(tmp_path / rule) as local:
            assert np.array_equal(local.predict([tmp_path / "picture.jpg"]).logits, answered["logits"])
        classify = classifier_pb2.ClassifyRequest(model_name=rule, images=[file], top_k=3)
        response = classifier_pb2.ClassifyResponse.FromString(ask(inference, ImageRequest(message=classify)))
        probabilities = sorted(expected["probabilities"][0], reverse=True)
        assert [label.probability for label in response.results[0].labels] == probabilities
    for one, other in combinations(SPECS, 2):
        assert not np.array_equal(logits[one], logits[other]), f"{one} and {other} can be told apart here"
