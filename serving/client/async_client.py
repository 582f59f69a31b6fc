"""Calls a server from asyncio: `sync_client` with awaited methods, so that many calls can be in flight."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc

from foldserve.serving.client.channel import ASK_WHY_S, Connection, ConnectionOptions, is_unreached
from foldserve.serving.client.messages import (
    Classification,
    Description,
    EncodedImage,
    IndexEntry,
    classify_request,
    infer_request,
    read_classification,
    read_description,
    read_index,
    read_outputs,
    typed_errors,
)
from foldserve.serving.client.streams import (
    Requests,
    StreamAnswer,
    read_classify_answer,
    read_infer_answer,
)
from foldserve.serving.pb import classifier_pb2_grpc, open_inference_pb2_grpc
from foldserve.serving.pb import open_inference_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

Value = TypeVar("Value")


class AsyncClient:
    """A connection to one server; use it as ``async with``, in one event loop.

    Every method raises the ServingError for the status that the server returns. Deadlines and retries are
    those of `foldserve.Client`.
    """

    def __init__(
        self,
        server: str,
        *,
        timeout_s: float = 30.0,
        connect_timeout_s: float = 3.0,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        """Prepare to connect to ``server``, as "HOST:PORT"; see ConnectionOptions for TLS and tokens."""
        self._connection = Connection(**connection)
        self._metadata = self._connection.metadata
        self._server = server
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            UnavailableError: no server answers within ``connect_timeout_s``, or not with this TLS and token.
            CredentialsError: a file of the connection cannot be read.
        """
        self._channel = self._connection.open_aio(self._server)
        self._stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._classifier = classifier_pb2_grpc.ClassifierStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        try:
            await asyncio.wait_for(self._channel.channel_ready(), self._connect_timeout_s)
        except TimeoutError:
            await self._check_reached()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _check_reached(self) -> None:
        try:
            await self._stub.ServerLive(pb.ServerLiveRequest(), timeout=ASK_WHY_S, metadata=self._metadata)
        except grpc.RpcError as error:
            if is_unreached(error):
                await self._channel.close()
                raise await asyncio.to_thread(self._connection.explain, self._server) from None

    async def describe(self, model: str, version: str = "") -> Description:
        """Return the metadata of ``model``; of the version that answers by default if none is named."""
        with typed_errors():
            request = pb.ModelMetadataRequest(name=model, version=version)
            return read_description(
                await self._stub.ModelMetadata(request, timeout=self._timeout_s, metadata=self._metadata)
            )

    async def infer(
        self, model: str, images: NDArray[np.uint8], version: str = ""
    ) -> dict[str, NDArray[np.float32]]:
        """Return ``logits`` and ``probabilities``, float32 [N, K] each, of ``images`` uint8 [N, C, H, W]."""
        with typed_errors():
            request = infer_request(model, images, version)
            return read_outputs(
                await self._stub.ModelInfer(request, timeout=self._timeout_s, metadata=self._metadata)
            )

    async def classify(
        self,
        model: str,
        images: Sequence[EncodedImage],
        version: str = "",
        *,
        top_k: int = 1,
        min_confidence: float = 0.0,
    ) -> Classification:
        """Return the labels of image files (paths or contents), which the server decodes and prepares.

        An image whose likeliest label is below ``min_confidence`` is marked in `Classification.unknown`.

        Raises:
            OSError: a file cannot be read.
        """
        with typed_errors():
            request = classify_request(model, images, version, top_k, min_confidence)
            return read_classification(
                await self._classifier.Classify(request, timeout=self._timeout_s, metadata=self._metadata)
            )

    def infer_stream(
        self,
        model: str,
        batches: Iterable[NDArray[np.uint8]] | AsyncIterable[NDArray[np.uint8]],
        version: str = "",
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[StreamAnswer[dict[str, NDArray[np.float32]]]]:
        """Yield the outputs of each of ``batches``, uint8 [N, C, H, W], in order, over one stream.

        The server takes up to 64 batches in advance, and then reads no more until answers are read. An error
        in one answer ends nothing else; it has a text, but no status. Streams are not sent again.

        Args:
            model: the model's name.
            batches: the images; taken one by one. They may be an asynchronous iterable, too.
            version: the version; if empty, the promoted one or else the newest that is ready.
            timeout_s: seconds for the whole stream; no limit by default.

        Raises:
            ServingError: the stream ended, for example as the server is draining (UnavailableError).
            Exception: what ``batches`` raised, after the answers to those before it.
        """
        requests = Requests(batches, lambda images: infer_request(model, images, version))
        return self._stream(self._stub.ModelStreamInfer, requests, read_infer_answer, timeout_s)

    def classify_stream(
        self,
        model: str,
        images: Iterable[EncodedImage] | AsyncIterable[EncodedImage],
        version: str = "",
        *,
        top_k: int = 1,
        min_confidence: float = 0.0,
        timeout_s: float | None = None,
    ) -> AsyncIterator[StreamAnswer[Classification]]:
        """Yield the labels of each of ``images`` (paths or contents), in order, over one stream.

        As `infer_stream`; the errors of answers are those of the server's statuses.

        Raises:
            ServingError: the stream ended.
            OSError: a file cannot be read; raised after the answers to the images before it.
        """
        requests = Requests(
            images, lambda image: classify_request(model, [image], version, top_k, min_confidence)
        )
        return self._stream(self._classifier.ClassifyStream, requests, read_classify_answer, timeout_s)

    async def index(self) -> list[IndexEntry]:
        """Return every version in the server's repository."""
        with typed_errors():
            return read_index(
                await self._stub.RepositoryIndex(
                    pb.RepositoryIndexRequest(), timeout=self._timeout_s, metadata=self._metadata
                )
            )

    async def _stream(
        self,
        method: Any,
        requests: Requests[Any, Any],
        read: Callable[[Any], StreamAnswer[Value]],
        timeout_s: float | None,
    ) -> AsyncIterator[StreamAnswer[Value]]:
        with typed_errors():
            call = method(aiter(requests), timeout=timeout_s, metadata=self._metadata)
            try:
                async for answer in call:
                    yield read(answer)
            finally:  # the caller may have stopped reading
                call.cancel()
            requests.check()
