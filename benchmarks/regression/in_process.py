"""Compares foldserve's way from request messages to response messages with the least that can do it.

No transport, one thread, batches as given: as much of the noise is gone as can be without counting
instructions. Both sides are run in short turns, so that a busy machine slows both alike.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from benchmarks.regression.slowed_server import slowed
from benchmarks.serving.bare_model import infer
from benchmarks.serving.errors import BenchError
from foldserve.artifact.format import IMAGE
from foldserve.runtime.session import Session
from foldserve.serving.config import ServeConfig
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.repository.repository import ModelRepository
from foldserve.serving.server_state import Lifecycle, ServerState
from foldserve.serving.services.inference import InferenceService
from foldserve.serving.services.requests import TensorRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.serving.networks import Network

_TURN_S = 0.01
_MIB = 2**20


@contextmanager
def in_process(
    network: Network, planted_us: float, *, requests: int, images: int
) -> Iterator[Callable[[float], float]]:
    """Open both for the block; yield a function that measures one ratio.

    Raises:
        BenchError: foldserve answered otherwise than the bare loop.
    """
    messages = [message_of(network, images) for _ in range(requests)]
    session = Session(network.model_file.read_bytes(), device="cpu", intra_op_threads=1)
    with ExitStack() as stack:
        stack.enter_context(slowed(planted_us))
        serve = stack.enter_context(_service(network))
        expected = _bare(session, messages)
        answered = serve(messages)
        if [_content(answer) for answer in answered] != [_content(answer) for answer in expected]:
            raise BenchError("foldserve and the bare loop answer the same requests differently")
        yield lambda cpu_s: ratio_of_costs(lambda: serve(messages), lambda: _bare(session, messages), cpu_s)


def message_of(network: Network, images: int) -> bytes:
    """Return a serialised request of ``images`` images."""
    pixels = network.images(images)
    request = pb.ModelInferRequest(model_name=network.name)
    request.inputs.add(name=IMAGE, datatype="UINT8", shape=pixels.shape)
    request.raw_input_contents.append(pixels.tobytes())
    return request.SerializeToString()


def _bare(session: Session, messages: list[bytes]) -> list[bytes]:
    requests = [pb.ModelInferRequest.FromString(message) for message in messages]
    return [response.SerializeToString() for response in infer(session, requests)]


@contextmanager
def _service(network: Network) -> Iterator[Callable[[list[bytes]], list[bytes]]]:
    """Yield a function that answers messages as the native transport does, from one thread."""
    config = ServeConfig(repository=network.repository, device="cpu", intra_op_threads=1)
    repository = ModelRepository(network.repository, config.model_defaults)
    repository.load_all()
    lifecycle = Lifecycle()
    lifecycle.enter(ServerState.READY)
    service = InferenceService(
        repository.index,
        lifecycle,
        max_decoding_bytes=config.max_queue_mib * _MIB,
        max_image_pixels=config.max_image_pixels,
    )

    def serve(messages: list[bytes]) -> list[bytes]:
        answers: list[bytes] = []

        def on_reply(_request: object, reply: bytes | Exception) -> None:
            if isinstance(reply, Exception):
                raise BenchError(f"foldserve refuses the benchmark's request: {reply}")
            answers.append(reply)

        calls = [
            TensorRequest(message=pb.ModelInferRequest.FromString(message), caller="benchmark")
            for message in messages
        ]
        service.submit(calls, on_reply, run_inline=True)
        if len(answers) != len(messages):
            raise BenchError(
                f"{len(answers)} of {len(messages)} requests were answered on the caller's thread"
            )
        return answers

    try:
        yield serve
    finally:
        service.close()
        repository.close(grace_s=5)


def _content(answer: bytes) -> list[bytes]:
    return list(pb.ModelInferResponse.FromString(answer).raw_output_contents)


def ratio_of_costs(top: Callable[[], object], bottom: Callable[[], object], cpu_s: float) -> float:
    """Run both in turns of some ten milliseconds and return the ratio of their CPU times per call."""
    calls = max(1, round(_TURN_S / _cost_s(bottom, 3)))
    spent_top = spent_bottom = 0.0
    while spent_bottom < cpu_s:
        spent_bottom += _cost_s(bottom, calls) * calls
        spent_top += _cost_s(top, calls) * calls
    return spent_top / spent_bottom


def _cost_s(call: Callable[[], object], count: int) -> float:
    started_s = time.process_time()  # of all threads, whichever ran the model
    for _ in range(count):
        call()
    return (time.process_time() - started_s) / count
