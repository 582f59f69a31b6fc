"""What inference calls do: admission, decoding where needed, the model's queue.

Knows no gRPC; any transport can call it. `submit` takes as many calls as a transport has at hand and answers
each once, with a serialised response or an error. The control RPCs are in `management`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
    from foldserve.serving.repository.repository import ModelRepository
    from foldserve.serving.server_state import Lifecycle

OnReply: TypeAlias = Callable[[InferenceRequest, Reply], None]

# The unary inference methods, by path, with the kind of call that each makes.
UNARY_METHODS: dict[str, type[InferenceRequest]] = {
    f"/{INFERENCE_SERVICE}/ModelInfer": TensorRequest,
    f"/{CLASSIFIER_SERVICE}/Classify": ImageRequest,
}


class InferenceService:
    """Inference over one repository.

    Attributes:
        logs_requests: whether each request is logged; transports then say who called.

    Args:
        repository: where models are found.
        lifecycle: the server's state; from DRAINING on, new calls are refused.
        max_decoding_bytes: most bytes that encoded images may hold while they wait to be decoded.
        max_image_pixels: most pixels, width times height, of an encoded image.
    """

    def __init__(
        self,
        repository: ModelRepository,
        lifecycle: Lifecycle,
        *,
        max_decoding_bytes: int,
        max_image_pixels: int,
    ) -> None:
        self._repository = repository
        self._lifecycle = lifecycle
        self._decoder = ImageDecoder(
            thread_count=usable_cpus(), max_bytes=max_decoding_bytes, max_pixels=max_image_pixels
        )
        self._refused: dict[str, Statistics] = {}
        self.logs_requests = requests_are_logged()

    @property
    def refused(self) -> Mapping[str, Statistics]:
        """What was counted of calls that reached no version, by model; "" is of models that there are not."""
        return self._refused

    @property
    def decoding_bytes(self) -> int:
        """Bytes that encoded images hold, with their pixels, until they are decoded."""
        return self._decoder.held_bytes

    def close(self) -> None:
        """Stop the decoding threads."""
        self._decoder.close()

    def submit(
        self, requests: Sequence[InferenceRequest], on_reply: OnReply, *, run_inline: bool = False
    ) -> None:
        """Run ``requests``; ``on_reply(request, reply)`` is called exactly once for each.

        Refusals are delivered before this returns, everything else from an instance's thread. With
        ``run_inline`` this thread may be that instance, for a model that is quick; see `Batcher.submit`.
        """

        def on_done(request: InferenceRequest, outcome: Outcome) -> None:
            # Its model was replaced between finding it and its queue: nobody need know.
            if isinstance(outcome, ModelUnloadedError):
                try:
                    if successor := self._successor(request):
                        request.model = successor
                        successor.submit([request], on_done)
                        return
                except Exception as error:  # becomes the call's answer
                    outcome = error
            on_reply(request, self._to_reply(request, outcome))

        def on_decoded(request: InferenceRequest, error: Exception | None) -> None:
            assert request.model is not None
            if error is None:
                request.model.submit([request], on_done)
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
            except Exception as error:  # becomes the call's answer
                on_done(request, error)
        for model, admitted in by_model.items():
            model.submit(admitted, on_done, run_inline=run_inline)

    def count_unread(self, method: str, error: Exception) -> None:
        """Count a call that never became one: its message could not be read, or its caller was gone."""
        self._refused_of("").count_failure(method, _status_of(error))

    def _successor(self, request: InferenceRequest) -> ServedModel | None:
        """Return what is served in the place of a call's model, where it takes the same images.

        Raises:
            NotFoundError, UnavailableError: nothing is, any more.
        """
        before = request.model
        assert before is not None
        model = self._repository.find(before.name, request.asked_version)
        is_other = model is not before and model.metadata.image == before.metadata.image
        return model if is_other else None

    def _admit(self, request: InferenceRequest) -> ServedModel:
        """Check everything that can be wrong with a call before it is queued."""
        if self._lifecycle.refuses_inference:
            raise UnavailableError("the server is draining; try again, or elsewhere")
        message = request.message
        version = message.model_version
        model = self._repository.find(message.model_name, version)
        request.model = model
        request.asked_version = version
        request.read(model)
        request.message = None
        return model

    def _to_reply(self, request: InferenceRequest, outcome: Outcome) -> Reply:
        """Return the answer to a call, and count it."""
        if not isinstance(outcome, Exception):
            try:
                reply = request.write(outcome)
            except Exception as error:  # no caller is left without an answer
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
            self._repository.ready_versions(name)
        except NotFoundError:
            name = ""  # callers may send any name, and each would be a time series for ever
        return self._refused_of(name)

    def _refused_of(self, name: str) -> Statistics:
        return self._refused.setdefault(name, Statistics())


def _status_of(error: Exception) -> str:
    return error.status if isinstance(error, FoldserveError) else InternalError.status
