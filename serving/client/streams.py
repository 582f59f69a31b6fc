"""Makes the requests of streams from a caller's iterable and reads the answers, for both clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from foldserve.serving.client.messages import (
    Classification,
    error_of,
    read_classification,
    read_outputs,
)
from foldserve.serving.errors import ServingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from foldserve.serving.pb import classifier_pb2
    from foldserve.serving.pb import open_inference_pb2 as pb

Item = TypeVar("Item")
Message = TypeVar("Message")
Value = TypeVar("Value")


@dataclass(frozen=True)
class StreamAnswer(Generic[Value]):
    """The answer to one request of a stream, or its error, which ends nothing else."""

    value: Value | None = None
    error: ServingError | None = None

    def result(self) -> Value:
        """Return the answer, or raise the request's error."""
        if self.error is not None:
            raise self.error
        return cast("Value", self.value)


class Requests(Generic[Item, Message]):
    """The requests of one stream, made of a caller's items one by one, as the stream takes them.

    gRPC ends a stream whose requests raise an error, and reports neither the error nor the answers under
    way. So the requests end at the error instead, and `check` raises it after the last answer.
    """

    def __init__(self, items: Iterable[Item] | AsyncIterable[Item], write: Callable[[Item], Message]) -> None:
        self._items = items
        self._write = write
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[Message]:
        """Yield the requests; the items must not be asynchronous."""
        try:
            for item in cast("Iterable[Item]", self._items):
                yield self._write(item)
        except Exception as error:  # the caller's own code raises anything
            self._error = error

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield the requests."""
        try:
            if hasattr(self._items, "__aiter__"):
                async for item in self._items:
                    yield self._write(item)
            else:
                for item in self._items:
                    yield self._write(item)
        except Exception as error:  # as above
            self._error = error

    def check(self) -> None:
        """Raise the error of the caller's items, or of a file among them, if there was one."""
        if self._error is not None:
            raise self._error


def read_infer_answer(answer: pb.ModelStreamInferResponse) -> StreamAnswer[dict[str, NDArray[np.float32]]]:
    """Return the outputs in one answer of ModelStreamInfer; its errors have a text and no status."""
    if answer.error_message:
        return StreamAnswer(error=ServingError(answer.error_message))
    return StreamAnswer(read_outputs(answer.infer_response))


def read_classify_answer(answer: classifier_pb2.ClassifyStreamResponse) -> StreamAnswer[Classification]:
    """Return the labels in one answer of ClassifyStream."""
    if answer.HasField("error"):
        return StreamAnswer(error=error_of(answer.error.status, answer.error.message))
    return StreamAnswer(read_classification(answer.response))
