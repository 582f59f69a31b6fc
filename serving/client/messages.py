"""Builds requests, reads responses and types errors, for both clients."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import grpc
import numpy as np

from foldserve.artifact.format import IMAGE, ModelMetadata
from foldserve.serving.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    ServingError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from foldserve.serving.pb import classifier_pb2
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.text import quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

# An image for `classify`: the path of a file, or its contents.
EncodedImage: TypeAlias = "Path | bytes"

_ERRORS = {
    error.status: error
    for error in (
        CancelledError,
        DeadlineExceededError,
        InvalidArgumentError,
        NotFoundError,
        PermissionDeniedError,
        ResourceExhaustedError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
    )
}


@dataclass(frozen=True)
class Description:
    """A model version: its hash, execution provider and metadata."""

    name: str
    version: str
    sha256: str
    provider: str
    metadata: ModelMetadata


@dataclass(frozen=True)
class IndexEntry:
    """One version of a model on a server; ``reason`` says why it is not ready."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True)
class Label:
    """One label of an image, with the model's probability for it."""

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Classification:
    """Labels per image, most likely first, and the model version that computed them.

    ``unknown`` tells for which images the likeliest label is below the confidence that was asked for.
    ``queue_us`` are the microseconds from being queued to the first execution, ``compute_us`` those from its
    start to the end of the last.
    """

    model: str
    version: str
    sha256: str
    labels: list[list[Label]]
    unknown: list[bool] = field(default_factory=list)
    queue_us: int = 0
    compute_us: int = 0


def infer_request(model: str, images: NDArray[np.uint8], version: str) -> pb.ModelInferRequest:
    """Return the request for logits and probabilities of ``images`` uint8 [N, C, H, W]."""
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name=IMAGE, datatype="UINT8", shape=images.shape)
    request.raw_input_contents.append(np.ascontiguousarray(images, np.uint8).tobytes())
    return request


def read_outputs(answer: pb.ModelInferResponse) -> dict[str, NDArray[np.float32]]:
    """Return the outputs in a response by name, float32 [N, K] each."""
    return {
        output.name: np.frombuffer(raw, np.float32).reshape(tuple(output.shape))
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def classify_request(
    model: str, images: Sequence[EncodedImage], version: str, top_k: int, min_confidence: float = 0.0
) -> classifier_pb2.ClassifyRequest:
    """Return the request for the labels of ``images``; raises OSError if a file cannot be read."""
    contents = [image.read_bytes() if isinstance(image, Path) else image for image in images]
    return classifier_pb2.ClassifyRequest(
        model_name=model,
        model_version=version,
        images=contents,
        top_k=top_k,
        min_confidence=min_confidence,
    )


def read_classification(answer: classifier_pb2.ClassifyResponse) -> Classification:
    """Return the labels in a response to Classify."""
    return Classification(
        model=answer.model_name,
        version=answer.model_version,
        sha256=answer.model_sha256,
        labels=[
            [Label(label.name, label.index, label.probability) for label in result.labels]
            for result in answer.results
        ],
        unknown=[result.unknown for result in answer.results],
        queue_us=answer.queue_us,
        compute_us=answer.compute_us,
    )


def read_description(answer: pb.ModelMetadataResponse) -> Description:
    """Return the description in a response to ModelMetadata."""
    properties = dict(answer.properties)
    return Description(
        name=answer.name,
        version=properties.get("version", ""),
        sha256=properties.get("model_sha256", ""),
        provider=properties.get("provider", ""),
        metadata=ModelMetadata.from_properties(properties),
    )


def read_index(answer: pb.RepositoryIndexResponse) -> list[IndexEntry]:
    """Return the entries in a response to RepositoryIndex."""
    return [IndexEntry(entry.name, entry.version, entry.state, entry.reason) for entry in answer.models]


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raise the ServingError for a call's status, or for a name that cannot be encoded as UTF-8."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"{quote(error.object)} cannot be encoded as UTF-8; names of models and versions must be UTF-8"
        ) from error
    except grpc.RpcError as error:
        status = error.code().name
        raise error_of(status, error.details() or status) from error


def error_of(status: str, text: str) -> ServingError:
    """Return the error for a gRPC status by name; a plain ServingError if the status has none of its own."""
    return _ERRORS.get(status, ServingError)(text)
