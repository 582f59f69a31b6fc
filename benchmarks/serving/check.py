"""Checks the answers of a server with an independent client, as a measured server must also be correct."""

from __future__ import annotations

import time
import urllib.request
from functools import cache
from typing import TYPE_CHECKING

import grpc
import numpy as np

from benchmarks.serving.bare_model import METHOD
from benchmarks.serving.errors import BenchError
from foldserve.artifact.format import IMAGE, LOGITS
from foldserve.runtime.session import Session
from foldserve.serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.serving.networks import Network
    from benchmarks.serving.server_process import ServerProcess

_READY_LIMIT_S = 120.0
# float32 sums in another order; relative to the largest logit.
_TOLERANCE = 1e-5


def request_body(server: ServerProcess, network: Network, images: int) -> bytes:
    """Return the message for ``images`` images: a ModelInferRequest, or bare bytes for mosec."""
    pixels = network.images(images)
    if not server.contestant.speaks_grpc:
        return pixels.tobytes()
    request = pb.ModelInferRequest(model_name=network.name)
    request.inputs.add(name=IMAGE, datatype="UINT8", shape=pixels.shape)
    request.raw_input_contents.append(pixels.tobytes())
    return request.SerializeToString()


def checked_answer_bytes(server: ServerProcess, network: Network, images: int) -> int:
    """Ask once, compare the logits with ONNX Runtime's own, and return the size of the answer in bytes.

    A server that is still loading (UNAVAILABLE) is asked again for two minutes.

    Raises:
        BenchError: the answer is an error, or wrong.
    """
    deadline = time.monotonic() + _READY_LIMIT_S
    while True:
        server.check_runs()
        try:
            answer = _ask(server, request_body(server, network, images))
            break
        except (grpc.RpcError, OSError) as error:
            still_loading = (
                not isinstance(error, grpc.RpcError) or error.code() == grpc.StatusCode.UNAVAILABLE
            )
            if not still_loading or time.monotonic() > deadline:
                raise BenchError(f"{server.contestant} answers {' '.join(str(error).split())}") from None
            time.sleep(0.2)
    expected = _expected_logits(network, images)
    logits = _logits(server, answer).reshape(expected.shape)
    error_share = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not error_share <= _TOLERANCE:
        raise BenchError(
            f"{server.contestant} answers wrong logits for {network.name}: off by {error_share:.1e}"
        )
    return len(answer)


def _ask(server: ServerProcess, body: bytes) -> bytes:
    if not server.contestant.speaks_grpc:
        url = f"http://127.0.0.1:{server.port}/inference"
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=30) as response:
            return bytes(response.read())
    # No limits in the client, as those of the servers are under test.
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        call = channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)
        return call(body, timeout=30)


def _logits(server: ServerProcess, answer: bytes) -> NDArray[np.float32]:
    if not server.contestant.speaks_grpc:
        return np.frombuffer(answer, np.float32)
    response = pb.ModelInferResponse.FromString(answer)
    names = [output.name for output in response.outputs]
    return np.frombuffer(response.raw_output_contents[names.index(LOGITS)], np.float32)


@cache
def _expected_logits(network: Network, images: int) -> NDArray[np.float32]:
    session = Session(network.model_file.read_bytes(), device="cpu")
    return session.run((LOGITS,), {IMAGE: network.images(images)})[0]
