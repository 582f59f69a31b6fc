"""A model that fails on one caller's image, or gives NaN for it: who else was in that batch never notices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.pb import open_inference_pb2 as pb
from tests.support.fragile_network import BREAKS, GIVES_NAN, FragileNetwork
from tests.support.server_process import ServerProcess, infer_request, outputs_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

NETWORK = FragileNetwork(seed=5)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("fragile")
    NETWORK.publish(folder / "models" / "tiny")
    with ServerProcess(folder / "models", folder / "server", "--transport", transport) as process:
        yield process


def counted(server: ServerProcess) -> pb.ModelStatistics:
    (entry,) = server.stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny")).model_stats
    return entry


@pytest.mark.parametrize(
    ("first_pixel", "expected"),
    [
        pytest.param(BREAKS, "internal error; the server's log has the details", id="fails"),
        pytest.param(GIVES_NAN, "NaN or infinity for 1 of 1 images", id="NaN"),
    ],
)
def test_only_the_failing_request_of_a_batch_fails(
    server: ServerProcess, first_pixel: int, expected: str
) -> None:
    """Requests that wait behind a long one share their batches with the guilty; the statistics show it."""
    before = counted(server)
    long = server.stub.ModelInfer.future(infer_request(NETWORK.random_images(6000)), timeout=60)
    images = [NETWORK.random_images(1 + index % 3, seed=index) for index in range(40)]
    guilty = {5, 17, 18, 39}
    for index in guilty:
        images[index] = NETWORK.image_that(first_pixel)
    calls = [server.stub.ModelInfer.future(infer_request(each), timeout=60) for each in images]
    for index, (call, sent) in enumerate(zip(calls, images, strict=True)):
        if index in guilty:
            code, text = status_of(call.result)
            assert code == grpc.StatusCode.INTERNAL
            assert expected in text
        else:
            assert np.abs(outputs_of(call.result())["logits"] - NETWORK.logits(sent)).max() < 1e-5
    assert outputs_of(long.result())["logits"].shape == (6000, 3)
    after = counted(server)
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == len(guilty)
    assert after.inference_stats.success.count - before.inference_stats.success.count == 41 - len(guilty)


def test_failing_request_of_a_stream_fails_alone(server: ServerProcess) -> None:
    images = [NETWORK.random_images(2, seed=index) for index in range(9)]
    images[4] = NETWORK.image_that(BREAKS)
    answers = list(server.stub.ModelStreamInfer(infer_request(each) for each in images))
    assert [index for index, answer in enumerate(answers) if answer.error_message] == [4]
    for answer, sent in zip(answers, images, strict=True):
        if not answer.error_message:
            logits = outputs_of(answer.infer_response)["logits"]
            assert np.abs(logits - NETWORK.logits(sent)).max() < 1e-5


def test_failed_execution_is_logged_with_its_reason(server: ServerProcess) -> None:
    status_of(lambda: server.infer(NETWORK.image_that(BREAKS)))
    assert "requested shape" in server.log
