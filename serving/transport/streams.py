"""Streams of inference requests: answered in order, in bounded memory, one bad request harming none other."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from serving.calls import Call, ClassifyCall, InferCall, Reply
from serving.errors import UnavailableError
from serving.pb import classifier_pb2
from serving.pb import open_inference_pb2 as pb
from serving.servicer import CLASSIFIER_SERVICE, INFERENCE_SERVICE
from serving.transport.wire import to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

# Requests of one stream that may be in flight or answered and unread: enough for full batches. A client that
# stops reading is not read from any more, and gRPC's flow control then holds it.
_WINDOW = 64


class StreamMethod(NamedTuple):
    """A streaming RPC: its name, the kind of its calls, how a request's bytes and reply become a response."""

    method: str
    kind: type[Call]
    write: Callable[[bytes, Reply], bytes]


def _write_infer(content: bytes, reply: Reply) -> bytes:
    if not isinstance(reply, Exception):
        answer = pb.ModelInferResponse.FromString(reply)
        return pb.ModelStreamInferResponse(infer_response=answer).SerializeToString()
    _, text = to_status(reply)
    request = pb.ModelInferRequest()
    with contextlib.suppress(DecodeError):
        request.ParseFromString(content)
    answer = pb.ModelInferResponse(id=request.id, model_name=request.model_name)
    return pb.ModelStreamInferResponse(error_message=text, infer_response=answer).SerializeToString()


def _write_classify(content: bytes, reply: Reply) -> bytes:
    if not isinstance(reply, Exception):
        answer = classifier_pb2.ClassifyResponse.FromString(reply)
        return classifier_pb2.ClassifyStreamResponse(response=answer).SerializeToString()
    status, text = to_status(reply)
    request = classifier_pb2.ClassifyRequest()
    with contextlib.suppress(DecodeError):
        request.ParseFromString(content)
    error = classifier_pb2.ClassifyStreamResponse.Error(status=status, message=text, id=request.id)
    return classifier_pb2.ClassifyStreamResponse(error=error).SerializeToString()


STREAMS = {
    f"/{INFERENCE_SERVICE}/ModelStreamInfer": StreamMethod("ModelStreamInfer", InferCall, _write_infer),
    f"/{CLASSIFIER_SERVICE}/ClassifyStream": StreamMethod("ClassifyStream", ClassifyCall, _write_classify),
}


async def answer_in_order(
    contents: AsyncIterator[bytes], ask: Callable[[bytes], Awaitable[bytes]], draining: asyncio.Event
) -> AsyncIterator[bytes]:
    """Yield ``ask(content)`` for each of ``contents``, in their order, up to _WINDOW of them under way.

    Closing it cancels what is under way.

    Raises:
        UnavailableError: ``draining`` was set before ``contents`` ended; what had been read is answered.
    """
    answers: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue(_WINDOW)

    async def read() -> None:
        async for content in contents:
            answer = asyncio.ensure_future(ask(content))
            try:
                await answers.put(answer)
            except asyncio.CancelledError:
                answer.cancel()
                raise

    async def read_until_drained() -> None:
        reading, drained = asyncio.ensure_future(read()), asyncio.ensure_future(draining.wait())
        try:
            await asyncio.wait((reading, drained), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise UnavailableError("the server is draining; open the stream again, or elsewhere")
            reading.result()
        finally:
            drained.cancel()
            reading.cancel()
            await answers.put(None)

    reader = asyncio.ensure_future(read_until_drained())
    try:
        while (answer := await answers.get()) is not None:
            yield await answer
        await reader
    finally:
        reader.cancel()
        while not answers.empty():
            if (left := answers.get_nowait()) is not None:
                left.cancel()
