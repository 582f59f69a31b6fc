"""Answers streams of inference requests: in order, in bounded memory, each bad request by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from foldserve.serving.errors import InvalidArgumentError, UnavailableError
from foldserve.serving.pb import classifier_pb2
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.protocol.names import CLASSIFIER_SERVICE, INFERENCE_SERVICE
from foldserve.serving.server_state import ServerState
from foldserve.serving.services.requests import ImageRequest, InferenceRequest, Reply, TensorRequest
from foldserve.serving.transport.status import parse_bounded, to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from foldserve.serving.server_state import Lifecycle

# Most requests of one stream that may be in flight, or answered but not read by the client, and most bytes
# that they and their answers may have together (a larger one is accepted alone): enough for full batches.
# If a client stops reading, its requests are not read either, and gRPC's flow control holds it back.
_WINDOW = 64
_WINDOW_BYTES = 16 * 1024 * 1024
# Parameter of every response in Triton's streams: whether it is the last to its request. Here each is.
_FINAL_PARAMETER = "triton_final_response"


class StreamMethod(NamedTuple):
    """A streaming RPC: its name, the kind of its requests, and how to write a response to one."""

    method: str
    kind: type[InferenceRequest]
    write: Callable[[bytes, Reply], bytes]


def _write_infer(content: bytes, reply: Reply) -> bytes:
    if not isinstance(reply, Exception):
        answer = pb.ModelInferResponse.FromString(reply)
        answer.parameters[_FINAL_PARAMETER].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=answer).SerializeToString()
    _, text = to_status(reply)
    request = pb.ModelInferRequest()
    with contextlib.suppress(InvalidArgumentError):
        request = parse_bounded(pb.ModelInferRequest, content)
    answer = pb.ModelInferResponse(id=request.id, model_name=request.model_name)
    answer.parameters[_FINAL_PARAMETER].bool_param = True
    return pb.ModelStreamInferResponse(error_message=text, infer_response=answer).SerializeToString()


def _write_classify(content: bytes, reply: Reply) -> bytes:
    if not isinstance(reply, Exception):
        answer = classifier_pb2.ClassifyResponse.FromString(reply)
        return classifier_pb2.ClassifyStreamResponse(response=answer).SerializeToString()
    status, text = to_status(reply)
    request = classifier_pb2.ClassifyRequest()
    with contextlib.suppress(InvalidArgumentError):
        request = parse_bounded(classifier_pb2.ClassifyRequest, content)
    error = classifier_pb2.ClassifyStreamResponse.Error(status=status, message=text, id=request.id)
    return classifier_pb2.ClassifyStreamResponse(error=error).SerializeToString()


STREAMS = {
    f"/{INFERENCE_SERVICE}/ModelStreamInfer": StreamMethod("ModelStreamInfer", TensorRequest, _write_infer),
    f"/{CLASSIFIER_SERVICE}/ClassifyStream": StreamMethod("ClassifyStream", ImageRequest, _write_classify),
}


class _Window:
    """Bounds one stream: holds its requests in flight and its unread answers, as futures in order."""

    def __init__(self) -> None:
        self._answers: deque[asyncio.Future[bytes]] = deque()
        self._held_bytes = 0
        self._ended = False
        self._changed = asyncio.Event()

    async def wait_for_room(self, byte_count: int) -> None:
        """Wait until a request of ``byte_count`` bytes fits; returns at once if the window is empty."""
        while self._answers and (
            len(self._answers) >= _WINDOW or self._held_bytes + byte_count > _WINDOW_BYTES
        ):
            await self._wait()

    def add(self, answer: asyncio.Future[bytes], byte_count: int) -> None:
        """Add a request of ``byte_count`` bytes; once it is answered, the answer's bytes count instead."""
        self._answers.append(answer)
        self._held_bytes += byte_count

        def on_answered(done: asyncio.Future[bytes]) -> None:
            self._held_bytes -= byte_count
            if not done.cancelled() and done.exception() is None:
                self._held_bytes += len(done.result())
            self._changed.set()

        answer.add_done_callback(on_answered)
        self._changed.set()

    def end(self) -> None:
        """Note that no more requests will be added."""
        self._ended = True
        self._changed.set()

    async def first(self) -> asyncio.Future[bytes] | None:
        """Return the oldest answer without removing it; None once the window is empty and has ended."""
        while not self._answers:
            if self._ended:
                return None
            await self._wait()
        return self._answers[0]

    def remove_first(self) -> None:
        """Remove the oldest answer, which the client has read."""
        self._held_bytes -= len(self._answers.popleft().result())
        self._changed.set()

    def cancel(self) -> None:
        """Cancel every request."""
        for answer in self._answers:
            answer.cancel()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()


async def answer_in_order(
    contents: AsyncIterator[bytes], ask: Callable[[bytes], Awaitable[bytes]], lifecycle: Lifecycle
) -> AsyncIterator[bytes]:
    """Yield ``ask(content)`` for each of ``contents``, in order, with a bounded window of them in flight.

    Closing the generator cancels the requests in flight.

    Raises:
        UnavailableError: the server began to drain before ``contents`` ended; the requests read are answered.
    """
    window = _Window()

    async def read() -> None:
        async for content in contents:
            await window.wait_for_room(len(content))
            window.add(asyncio.ensure_future(ask(content)), len(content))

    async def read_until_drained() -> None:
        reading = asyncio.ensure_future(read())
        drained = asyncio.ensure_future(lifecycle.wait_for(ServerState.DRAINING))
        try:
            await asyncio.wait((reading, drained), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise UnavailableError("the server is draining; open the stream again, or on another server")
            reading.result()
        finally:
            drained.cancel()
            reading.cancel()
            window.end()

    reader = asyncio.ensure_future(read_until_drained())
    try:
        while (answer := await window.first()) is not None:
            yield await answer
            window.remove_first()
        await reader
    finally:
        reader.cancel()
        window.cancel()
