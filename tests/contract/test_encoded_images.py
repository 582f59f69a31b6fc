"""Encoded images in place of pixels: the same bytes reach the model as when training's code prepares them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve import Client
from foldserve.imaging import prepare_image
from foldserve.serving.pb import classifier_pb2, classifier_pb2_grpc
from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.encoded_images import as_elements, encode, png_that_claims
from tests.support.server_process import ServerProcess, infer_request, outputs_of, status_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.artifacts import TinyNetwork

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def request(images: Sequence[bytes], *, typed: bool = False, model: str = "colour") -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(
        model_name=model, inputs=[{"name": "image", "datatype": "BYTES", "shape": [len(images)]}]
    )
    if typed:
        message.inputs[0].contents.bytes_contents.extend(images)
    else:
        message.raw_input_contents.append(as_elements(images))
    return message


def photo(seed: int = 0) -> np.ndarray:
    """Smooth colours, larger than the input and of another shape, so that scaling and cutting matter."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.kron(coarse, np.ones((9, 11, 1), np.uint8))


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_an_image_is_prepared_as_training_prepares_it(
    server: ServerProcess, colour_network: TinyNetwork, kind: str, typed: bool
) -> None:
    """One file both ways: prepared here by `imaging` and sent as pixels, and sent as it is. Bit for bit."""
    files = [encode(photo(seed), kind) for seed in range(3)]
    pixels = np.stack([prepare_image(file, colour_network.image) for file in files])
    as_pixels = server.infer(pixels, "colour")
    as_files = server.stub.ModelInfer(request(files, typed=typed))
    assert as_files.raw_output_contents == as_pixels.raw_output_contents


def test_another_image_gives_other_logits(server: ServerProcess, colour_network: TinyNetwork) -> None:
    """The twin of the test above."""
    first, second = (server.stub.ModelInfer(request([encode(photo(seed))])) for seed in (0, 1))
    assert first.raw_output_contents != second.raw_output_contents


BAD = {
    "no image": ([encode(photo()), b"not an image"], ["image 1: not an image in a known format"]),
    "empty": ([b""], ["image 0: the image is empty"]),
    "cut off": ([encode(photo(), "JPEG")[:200]], ["image 0: damaged image"]),
    "100,000 x 100,000 pixels": ([png_that_claims(100_000, 100_000)], ["image 0", "100000x100000 pixels"]),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_a_bad_image_is_explained_and_its_neighbours_served(
    server: ServerProcess, case: tuple[list[bytes], list[str]]
) -> None:
    files, fragments = case
    sound = request([encode(photo())])
    expected = server.stub.ModelInfer(sound).raw_output_contents
    with ThreadPoolExecutor(8) as callers:
        neighbours = [callers.submit(server.stub.ModelInfer, sound) for _ in range(8)]
        code, text = status_of(lambda: server.stub.ModelInfer(request(files)))
    assert code == INVALID
    assert all(fragment in text for fragment in fragments), text
    assert all(neighbour.result().raw_output_contents == expected for neighbour in neighbours)


def changed(shape: list[int], raw: bytes) -> pb.ModelInferRequest:
    message = request([b"x"])
    message.inputs[0].ClearField("shape")
    message.inputs[0].shape.extend(shape)
    message.raw_input_contents[0] = raw
    return message


MALFORMED = {
    "length beyond the end": (
        changed([1], b"\xff\x00\x00\x00abc"),
        ["claims 255 bytes", "exceeds the buffer"],
    ),
    "half a length": (changed([1], b"\x01\x00"), ["element 0 at byte 0"]),
    "absurd length": (changed([1], b"\xff\xff\xff\xffabc"), ["claims 4294967295 bytes"]),
    "too few": (changed([3], as_elements([b"a"])), ["1 encoded images", "too few", "needs 3"]),
    "too many": (changed([1], as_elements([b"a", b"b"])), ["2 encoded images", "too many"]),
    "absurd shape": (changed([2**62], as_elements([b"a"])), ["too few", str(2**62)]),
    "pixels' shape": (changed([1, 3, 6, 10], as_elements([b"a"])), ["[1, 3, 6, 10]", "[N] or [N, 1]"]),
    "no rows": (changed([0], b""), ["[0]", "N at least 1"]),
}


@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_elements_are_explained(
    server: ServerProcess, case: tuple[pb.ModelInferRequest, list[str]]
) -> None:
    message, fragments = case
    code, text = status_of(lambda: server.stub.ModelInfer(message))
    assert code == INVALID
    assert all(fragment in text for fragment in fragments), text


def test_images_beyond_the_decoding_memory_are_refused_at_once(repository: Path, tmp_path: Path) -> None:
    """Small on the wire: the limit counts their pixels too."""
    with ServerProcess(repository, tmp_path, "--max-queue-mib", "1") as server:
        code, text = status_of(lambda: server.stub.ModelInfer(request([b"x" * 200] * 4000)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "--max-queue-mib" in text


def test_too_many_encoded_images_are_refused(server: ServerProcess) -> None:
    stub = classifier_pb2_grpc.ClassifierStub(server.channel)
    images = [b"x"] * 4097
    for ask in (
        lambda: server.stub.ModelInfer(request(images)),
        lambda: stub.Classify(classifier_pb2.ClassifyRequest(model_name="colour", images=images)),
    ):
        code, text = status_of(ask)
        assert code == INVALID
        assert "more than 4096 images" in text


def test_classify_answers_labels_probabilities_and_model(
    server: ServerProcess, colour_network: TinyNetwork
) -> None:
    files = [encode(photo(seed), "JPEG") for seed in range(4)]
    stub = classifier_pb2_grpc.ClassifierStub(server.channel)
    answer = stub.Classify(
        classifier_pb2.ClassifyRequest(model_name="colour", images=files, top_k=2, id="seven")
    )
    pixels = np.stack([prepare_image(file, colour_network.image) for file in files])
    probabilities = outputs_of(server.infer(pixels, "colour"))["probabilities"]
    assert (answer.id, answer.model_name, answer.model_version) == ("seven", "colour", "1")
    metadata = server.stub.ModelMetadata(pb.ModelMetadataRequest(name="colour"))
    assert answer.model_sha256 == metadata.properties["model_sha256"]
    assert answer.compute_us > 0
    for result, row in zip(answer.results, probabilities, strict=True):
        best = np.argsort(-row)[:2]
        assert [label.index for label in result.labels] == best.tolist()
        assert [label.name for label in result.labels] == [colour_network.labels[index] for index in best]
        assert [label.probability for label in result.labels] == row[best].tolist()


def test_classify_returns_top_k_labels_one_by_default(server: ServerProcess) -> None:
    stub = classifier_pb2_grpc.ClassifierStub(server.channel)

    def label_count(top_k: int) -> int:
        asked = classifier_pb2.ClassifyRequest(model_name="colour", images=[encode(photo())], top_k=top_k)
        return len(stub.Classify(asked).results[0].labels)

    assert (label_count(0), label_count(3), label_count(1_000_000)) == (1, 3, 5)


def test_classify_says_which_answers_are_unknown(server: ServerProcess) -> None:
    files = [encode(photo(seed), "PNG") for seed in range(12)]
    with Client(server.address) as client:
        every = client.classify("colour", files)
        limit = sorted(labels[0].probability for labels in every.labels)[5]
        some = client.classify("colour", files, min_confidence=limit)
    assert every.unknown == [False] * 12
    assert some.unknown == [labels[0].probability < limit for labels in every.labels]
    assert sum(some.unknown) == 5
    assert some.labels == every.labels


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_classify_refuses_a_confidence_that_is_no_probability(server: ServerProcess, value: float) -> None:
    asked = classifier_pb2.ClassifyRequest(
        model_name="colour", images=[encode(photo())], min_confidence=value
    )
    stub = classifier_pb2_grpc.ClassifierStub(server.channel)
    assert status_of(lambda: stub.Classify(asked))[0] == INVALID


def test_classify_explains_bad_requests(server: ServerProcess) -> None:
    stub = classifier_pb2_grpc.ClassifierStub(server.channel)
    for message, code, fragment in (
        (classifier_pb2.ClassifyRequest(model_name="nets", images=[b"x"]), "NOT_FOUND", "'nets'"),
        (classifier_pb2.ClassifyRequest(model_name="colour"), "INVALID_ARGUMENT", "no images"),
        (classifier_pb2.ClassifyRequest(model_name="colour", images=[b"x"]), "INVALID_ARGUMENT", "image 0"),
    ):
        status, text = status_of(lambda asked=message: stub.Classify(asked))  # type: ignore[misc]
        assert status.name == code
        assert fragment in text


def test_classify_stream_answers_in_order_and_survives_a_bad_image(server: ServerProcess) -> None:
    stub = classifier_pb2_grpc.ClassifierStub(server.channel)
    sound = encode(photo(), "JPEG")

    def requests() -> object:
        for index in range(200):
            image = b"bad" if index == 50 else sound
            yield classifier_pb2.ClassifyRequest(model_name="colour", images=[image], id=str(index))

    answers = list(stub.ClassifyStream(requests()))
    assert [answer.response.id or answer.error.id for answer in answers] == [str(i) for i in range(200)]
    assert [index for index, answer in enumerate(answers) if answer.HasField("error")] == [50]
    assert answers[50].error.status == "INVALID_ARGUMENT"
    assert "not an image" in answers[50].error.message


def test_pixels_and_encoded_images_are_served_together(
    server: ServerProcess, colour_network: TinyNetwork
) -> None:
    """Calls that decode and calls that do not go through one queue."""
    pixels = colour_network.random_images(2)
    with ThreadPoolExecutor(8) as callers:
        encoded = [callers.submit(server.stub.ModelInfer, request([encode(photo())])) for _ in range(20)]
        plain = [callers.submit(server.stub.ModelInfer, infer_request(pixels, "colour")) for _ in range(20)]
    assert len({future.result().raw_output_contents[0] for future in encoded}) == 1
    assert len({future.result().raw_output_contents[0] for future in plain}) == 1
