"""Defines the kinds of inference request: each reads its message and writes its response."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from foldserve.artifact.classification import top_indices
from foldserve.artifact.format import OUTPUTS
from foldserve.serving.batching.request import Arrays, Request
from foldserve.serving.errors import InvalidArgumentError
from foldserve.serving.pb import classifier_pb2, open_inference_pb2
from foldserve.serving.protocol.image_count import MAX_ENCODED_IMAGES, MAX_IMAGES, check_image_count
from foldserve.serving.protocol.infer_request import (
    check_parameter_count,
    check_triton_parameters,
    read_images,
    read_outputs,
)
from foldserve.serving.protocol.infer_response import ALL_OUTPUTS, Output, write_infer_response
from foldserve.serving.protocol.parameters import parameter_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message
    from numpy.typing import NDArray

    from foldserve.serving.model.served_model import ServedModel

# A serialised response, or the error in its place.
Reply: TypeAlias = bytes | Exception

_PROBABILITIES = OUTPUTS.index("probabilities")
_NO_ROWS = np.empty((0,), np.uint8)


@dataclass(slots=True, eq=False, kw_only=True)
class InferenceRequest(Request):
    """One inference request. ``completion`` belongs to the transport, which answers through it.

    Set ``cancelled`` when the caller goes away; ``deadline_s`` is on time.monotonic's clock.
    `InferenceService.submit` sets ``received_s``, ``model``, ``requested_version`` ("" for none) and either
    ``rows`` or ``encoded``, and drops the message so that its memory is freed.
    """

    # Any: each class has its own type of message. None once the message has been read.
    message: Any
    completion: Any = None
    rows: NDArray[np.uint8] = field(default_factory=lambda: _NO_ROWS)
    encoded: Sequence[bytes] = ()  # images that must be decoded to become rows
    model: ServedModel | None = None
    requested_version: str = ""
    request_id: str = ""
    method: str = ""  # the RPC
    peer: str = ""  # the caller's address, if requests are logged
    received_s: float = 0.0  # on time.monotonic's clock

    request_type: ClassVar[type[Message]]
    unary_method: ClassVar[str]

    @abstractmethod
    def read(self, model: ServedModel) -> None:
        """Read the message for ``model``; raises InvalidArgumentError or UnimplementedError."""

    @abstractmethod
    def write(self, arrays: Arrays) -> bytes:
        """Return the serialised response; ``arrays`` are the model's outputs for ``rows``."""


@dataclass(slots=True, eq=False, kw_only=True)
class TensorRequest(InferenceRequest):
    """A ModelInfer request, or one of a ModelStreamInfer."""

    request_type: ClassVar[type[Message]] = open_inference_pb2.ModelInferRequest
    unary_method: ClassVar[str] = "ModelInfer"

    method: str = unary_method
    outputs: tuple[Output, ...] = ALL_OUTPUTS
    parameters: Any = None  # the request's parameters, if it has any

    def read(self, model: ServedModel) -> None:
        """Read rows or encoded images, outputs, id and parameters from the message."""
        message = self.message
        self.request_id = message.id
        if message.parameters:
            self._read_parameters()
        if message.outputs:
            self.outputs = read_outputs(message, OUTPUTS)
        images = read_images(message, model.input, max_images=max(MAX_IMAGES, model.settings.max_batch_size))
        if isinstance(images, np.ndarray):
            self.rows = images
        else:
            self.encoded = images

    def write(self, arrays: Arrays) -> bytes:
        """Return a serialised ModelInferResponse."""
        assert self.model is not None
        return write_infer_response(
            self.model.response_heads, self.outputs, self.request_id, self.parameters, arrays
        )

    def _read_parameters(self) -> None:
        self.parameters = self.message.parameters
        check_parameter_count(self.parameters, "the request")
        if "timeout" in self.parameters:
            parameter = self.parameters["timeout"]
            kind = parameter.WhichOneof("parameter_choice")
            timeout_us = getattr(parameter, kind) if kind in ("int64_param", "uint64_param") else -1
            if timeout_us < 0:
                raise InvalidArgumentError(
                    f"parameter 'timeout' is {parameter_text(parameter)}; send microseconds as an "
                    "int64_param of at least 0 (0 means no timeout)"
                )
            if timeout_us:
                self.deadline_s = min(self.deadline_s, time.monotonic() + timeout_us / 1e6)
        check_triton_parameters(self.parameters)


@dataclass(slots=True, eq=False, kw_only=True)
class ImageRequest(InferenceRequest):
    """A Classify request, or one of a ClassifyStream."""

    request_type: ClassVar[type[Message]] = classifier_pb2.ClassifyRequest
    unary_method: ClassVar[str] = "Classify"

    method: str = unary_method
    top_k: int = 1
    min_confidence: float = 0.0

    def read(self, model: ServedModel) -> None:
        """Read the encoded images, id, top_k and min_confidence from the message."""
        del model
        if not self.message.images:
            raise InvalidArgumentError("the request has no images; send at least one, encoded")
        check_image_count(len(self.message.images), MAX_ENCODED_IMAGES)
        self.request_id = self.message.id
        self.top_k = self.message.top_k or 1
        self.min_confidence = self.message.min_confidence
        if not 0 <= self.min_confidence <= 1:  # NaN neither
            raise InvalidArgumentError(
                f"min_confidence is {self.min_confidence:g}; send a probability from 0 to 1, or leave it out"
            )
        self.encoded = list(self.message.images)

    def write(self, arrays: Arrays) -> bytes:
        """Return a serialised ClassifyResponse."""
        model = self.model
        assert model is not None
        labels = model.metadata.labels
        response = classifier_pb2.ClassifyResponse(
            id=self.request_id,
            model_name=model.name,
            model_version=model.version_text,
            model_sha256=model.verified.sha256,
            queue_us=round((self.started_s - self.queued_s) * 1e6),
            compute_us=round((self.finished_s - self.started_s) * 1e6),
        )
        for row in arrays[_PROBABILITIES]:
            result = response.results.add()
            for index in top_indices(row, self.top_k):
                result.labels.add(name=labels[index], index=index, probability=row[index])
            result.unknown = bool(row.max() < np.float32(self.min_confidence))
        return response.SerializeToString()
