"""One caller's image passes what other connections have queued, over both transports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from foldserve.serving.pb import open_inference_pb2_grpc
from tests.support.artifacts import TinyNetwork
from tests.support.held_server import HeldServer
from tests.support.repository_changes import eventually
from tests.support.scrape import scrape
from tests.support.server_process import infer_request

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.serving.pb import open_inference_pb2 as pb

LARGE, MANY, ONE = 1, 2, 3  # the first pixel of each caller's images
_LIMIT_S = 60.0


def request_of(pixel: int, count: int) -> pb.ModelInferRequest:
    return infer_request(np.full((count, *TinyNetwork().image.shape), pixel, np.uint8))


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_one_image_goes_with_the_next_execution(tmp_path: Path, transport: str, kind: str) -> None:
    TinyNetwork().publish(tmp_path / "models" / "tiny")
    flags = ("--transport", transport, "--max-batch-size", "4", "--instances", "1")
    # Without a pool of their own, channels to one address share one connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with (
        HeldServer(tmp_path / "models", tmp_path / "server", *flags) as server,
        grpc.insecure_channel(server.address, options=options) as large_channel,
        grpc.insecure_channel(server.address, options=options) as many_channel,
    ):
        large, many = (
            open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            for channel in (large_channel, many_channel)
        )
        server.hold()
        calls = [large.ModelInfer.future(request_of(LARGE, 40), timeout=_LIMIT_S)]
        server.wait_until_held()
        calls += [many.ModelInfer.future(request_of(MANY, 1), timeout=_LIMIT_S) for _ in range(30)]
        eventually(lambda: scrape(server).total("foldserve_pending_rows") == 66, "all of them wait")
        if kind == "unary":
            calls.append(server.stub.ModelInfer.future(request_of(ONE, 1), timeout=_LIMIT_S))
        else:
            answers = server.stub.ModelStreamInfer(iter([request_of(ONE, 1)]), timeout=_LIMIT_S)
        eventually(lambda: scrape(server).total("foldserve_pending_rows") == 67, "and the last one")
        server.release()
        for call in calls:
            call.result()
        if kind == "stream":
            assert [answer.error_message for answer in answers] == [""]
        executions = server.executions()
        held = executions.index([LARGE] * 4)
        assert ONE in executions[held + 1], executions[held : held + 12]
