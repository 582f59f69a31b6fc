"""Answers inference requests: admits them, decodes their images if needed, and queues them for the model.

Independent of gRPC, so that any transport can use it. `submit` accepts as many requests as a transport has at
hand and answers each once, with a serialised response or an error. The other RPCs are in `management`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from foldserve.errors import FoldserveError
from foldserve.runtime.cpus import usable_cpus
from foldserve.serving.errors import (
    INTERNAL_ERROR_TEXT,
    InternalError,
    ModelUnloadedError,
    NotFoundError,
    UnavailableError,
)
from foldserve.serving.model.statistics import Statistics
from foldserve.serving.protocol.names import CLASSIFIER_SERVICE, INFERENCE_SERVICE
from foldserve.serving.services.image_decoder import ImageDecoder
from foldserve.serving.services.request_log import log_fault, log_request, requests_are_logged
from foldserve.serving.services.requests import ImageRequest, InferenceRequest, Reply, TensorRequest

if TYPE_CHECKING:
    from foldserve.serving.batching.request import Outcome
    from foldserve.serving.model.served_model import ServedModel
    from foldserve.serving.repository.index import ModelIndex
    from foldserve.serving.server_state import Lifecycle

OnReply: TypeAlias = Callable[[InferenceRequest, Reply], None]

# The unary inference methods by path, with the kind of request that each receives.
UNARY_METHODS: dict[str, type[InferenceRequest]] = {
    f"/{INFERENCE_SERVICE}/ModelInfer": TensorRequest,
    f"/{CLASSIFIER_SERVICE}/Classify": ImageRequest,
}


class InferenceService:
    """Answers inference requests for the models of one repository.

    Attributes:
        logs_requests: whether each request is logged; transports then set ``peer``.

    Args:
        index: finds the models.
        lifecycle: the server's state; from DRAINING on, new requests are refused.
        max_decoding_bytes: most bytes that images waiting to be decoded may hold.
        max_image_pixels: most pixels, width times height, of an encoded image.
    """

    def __init__(
        self,
        index: ModelIndex,
        lifecycle: Lifecycle,
        *,
        max_decoding_bytes: int,
        max_image_pixels: int,
    ) -> None:
        self._index = index
        self._lifecycle = lifecycle
        self._decoder = ImageDecoder(
            thread_count=usable_cpus(), max_bytes=max_decoding_bytes, max_pixels=max_image_pixels
        )
        self._refused: dict[str, Statistics] = {}
        self.logs_requests = requests_are_logged()

    @property
    def refused(self) -> Mapping[str, Statistics]:
        """Statistics of requests that reached no version, by model; "" stands for unknown models."""
        return self._refused

    @property
    def decoding_bytes(self) -> int:
        """Bytes that encoded images and their pixels hold until they are decoded."""
        return self._decoder.held_bytes

    def close(self) -> None:
        """Stop the decoding threads."""
        self._decoder.close()

    def submit(
        self, requests: Sequence[InferenceRequest], on_reply: OnReply, *, run_inline: bool = False
    ) -> None:
        """Run ``requests``; ``on_reply(request, reply)`` is called exactly once for each.

        Refusals are delivered before this returns, other replies from an instance's thread. With
        ``run_inline``, a fast model may run on the calling thread; see `Batcher.submit`.
        """

        def on_done(request: InferenceRequest, outcome: Outcome) -> None:
            # The model was replaced after it was found and before it was queued: use the new one.
            if isinstance(outcome, ModelUnloadedError):
                try:
                    if successor := self._successor(request):
                        request.model = successor
                        successor.submit([request], on_done)
                        return
                except Exception as error:  # becomes the request's answer
                    outcome = error
            on_reply(request, self._to_reply(request, outcome))

        def on_decoded(request: InferenceRequest, error: Exception | None) -> None:
            assert request.model is not None
            if error is None:
                # For a quick model this thread runs it: no other has to wake up.
                request.model.submit([request], on_done, run_inline=True)
            else:
                on_done(request, error)

        by_model: dict[ServedModel, list[InferenceRequest]] = {}
        received_s = time.monotonic()
        for request in requests:
            request.received_s = received_s
            try:
                model = self._admit(request)
                if request.encoded:
                    self._decoder.submit(request, model.metadata.image, on_decoded)
                else:
                    by_model.setdefault(model, []).append(request)
            except Exception as error:  # becomes the request's answer
                on_done(request, error)
        for model, admitted in by_model.items():
            model.submit(admitted, on_done, run_inline=run_inline)

    def count_unread(self, method: str, error: Exception) -> None:
        """Count a call that was not read: its message did not parse, or its caller had cancelled."""
        self._refused_of("").count_failure(method, _status_of(error))

    def _successor(self, request: InferenceRequest) -> ServedModel | None:
        """Return the model that replaced the request's, None if it takes other images.

        Raises:
            NotFoundError, UnavailableError: no model has replaced it.
        """
        before = request.model
        assert before is not None
        model = self._index.find(before.name, request.requested_version)
        # How pictures are decoded may change: by either rule, the pixels are nearly the same.
        fits = replace(model.metadata.image, decode="full") == replace(before.metadata.image, decode="full")
        return model if fits and model is not before else None

    def _admit(self, request: InferenceRequest) -> ServedModel:
        """Check the request completely, so that nothing wrong is queued, and return its model."""
        if self._lifecycle.refuses_inference:
            raise UnavailableError("the server is draining; try again, or use another server")
        message = request.message
        version = message.model_version
        model = self._index.find(message.model_name, version)
        request.model = model
        request.requested_version = version
        request.read(model)
        request.message = None
        return model

    def _to_reply(self, request: InferenceRequest, outcome: Outcome) -> Reply:
        """Return the answer to a request, and count it."""
        if not isinstance(outcome, Exception):
            try:
                reply = request.write(outcome)
            except Exception as error:  # every caller gets an answer
                outcome = error
            else:
                assert request.model is not None
                request.model.statistics.count_success(request.method, request.received_s)
                if self.logs_requests:
                    log_request(request, "OK")
                return reply
        return self._to_failure(request, outcome)

    def _to_failure(self, request: InferenceRequest, error: Exception) -> Exception:
        self._statistics_of(request).count_failure(request.method, _status_of(error))
        if not isinstance(error, FoldserveError):
            log_fault(request, error)
            error = InternalError(INTERNAL_ERROR_TEXT)
        if self.logs_requests:
            log_request(request, _status_of(error), str(error))
        return error

    def _statistics_of(self, request: InferenceRequest) -> Statistics:
        if request.model is not None:
            return request.model.statistics
        name = request.message.model_name
        try:
            self._index.ready_versions(name)
        except NotFoundError:
            name = ""  # callers may send any name, and each would stay a time series for ever
        return self._refused_of(name)

    def _refused_of(self, name: str) -> Statistics:
        return self._refused.setdefault(name, Statistics())


def _status_of(error: Exception) -> str:
    return error.status if isinstance(error, FoldserveError) else InternalError.status
