"""A small client: arrays in, arrays out, typed errors. Also the example of how to call the server."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import grpc
import numpy as np

from serving.artifact import IMAGE, ModelMetadata
from serving.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    ServingError,
    UnavailableError,
    UnimplementedError,
)
from serving.pb import open_inference_pb2 as pb
from serving.pb import open_inference_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_OPTIONS = (
    # What a server may send or take is the server's to limit.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC obeys http_proxy, through which a server on this machine or in a cluster is rarely reached.
    ("grpc.enable_http_proxy", 0),
)
_ERRORS = {
    error.status: error
    for error in (
        CancelledError,
        DeadlineExceededError,
        InvalidArgumentError,
        NotFoundError,
        ResourceExhaustedError,
        UnavailableError,
        UnimplementedError,
    )
}


@dataclass(frozen=True)
class Description:
    """A model as its server describes it."""

    name: str
    version: str
    sha256: str
    provider: str
    metadata: ModelMetadata


@dataclass(frozen=True)
class IndexEntry:
    """One version of a model on a server; ``reason`` says why it does not serve."""

    name: str
    version: str
    state: str
    reason: str


class Client:
    """A connection to one server; use it as a context manager. Methods may be called from any thread.

    Every method raises the ServingError that the server's status stands for.
    """

    def __init__(self, server: str, *, timeout_s: float = 30.0, connect_timeout_s: float = 3.0) -> None:
        """Connect to ``server``, as "HOST:PORT".

        Raises:
            UnavailableError: nothing answers there within ``connect_timeout_s``.
        """
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(server, options=_OPTIONS)
        self._stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        try:
            grpc.channel_ready_future(self._channel).result(timeout=connect_timeout_s)
        except grpc.FutureTimeoutError:
            self._channel.close()
            raise UnavailableError(
                f"no server answers at {server}; start one with `foldserve serve`, or name another with "
                "--server"
            ) from None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def describe(self, model: str, version: str = "") -> Description:
        """Return what ``model`` is and takes; the newest version that serves where none is named."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        with _typed_errors():
            answer: pb.ModelMetadataResponse = self._stub.ModelMetadata(request, timeout=self._timeout_s)
        properties = dict(answer.properties)
        return Description(
            name=answer.name,
            version=properties.get("version", ""),
            sha256=properties.get("model_sha256", ""),
            provider=properties.get("provider", ""),
            metadata=ModelMetadata.from_properties(properties),
        )

    def infer(
        self, model: str, images: NDArray[np.uint8], version: str = ""
    ) -> dict[str, NDArray[np.float32]]:
        """Return ``logits`` and ``probabilities``, float32 [N, K] each, of ``images`` uint8 [N, C, H, W]."""
        request = pb.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name=IMAGE, datatype="UINT8", shape=images.shape)
        request.raw_input_contents.append(np.ascontiguousarray(images, np.uint8).tobytes())
        with _typed_errors():
            answer: pb.ModelInferResponse = self._stub.ModelInfer(request, timeout=self._timeout_s)
        return {
            output.name: np.frombuffer(raw, np.float32).reshape(tuple(output.shape))
            for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }

    def index(self) -> list[IndexEntry]:
        """Return every version in the server's repository."""
        with _typed_errors():
            answer: pb.RepositoryIndexResponse = self._stub.RepositoryIndex(
                pb.RepositoryIndexRequest(), timeout=self._timeout_s
            )
        return [IndexEntry(entry.name, entry.version, entry.state, entry.reason) for entry in answer.models]


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        status = error.code().name
        raise _ERRORS.get(status, ServingError)(error.details() or status) from error
