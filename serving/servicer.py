"""What inference calls do: admission, decoding where needed, the model's queue.

Knows no gRPC; any transport can call it. `submit` takes as many calls as a transport has at hand and answers
each once, with a serialised response or an error. The control RPCs are in `serving.control`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from serving.calls import Call, ClassifyCall, InferCall, Reply
from serving.errors import RetiredError, UnavailableError
from serving.image_decoder import ImageDecoder
from serving.processors import usable_processors

if TYPE_CHECKING:
    from serving.batch_requests import Outcome
    from serving.model import ServedModel
    from serving.repository import Repository

OnReply: TypeAlias = Callable[[Call, Reply], None]

INFERENCE_SERVICE = "inference.GRPCInferenceService"
CLASSIFIER_SERVICE = "foldserve.v1.Classifier"

# The unary inference methods, by path, with the kind of call that each makes.
UNARY_CALLS: dict[str, type[Call]] = {
    f"/{INFERENCE_SERVICE}/ModelInfer": InferCall,
    f"/{CLASSIFIER_SERVICE}/Classify": ClassifyCall,
}


class Servicer:
    """Inference over one repository.

    Args:
        repository: where models are found.
        max_decoding_bytes: most bytes that encoded images may hold while they wait to be decoded.
        max_image_pixels: most pixels, width times height, of an encoded image.
    """

    def __init__(self, repository: Repository, *, max_decoding_bytes: int, max_image_pixels: int) -> None:
        self._repository = repository
        self._decoder = ImageDecoder(
            thread_count=usable_processors(), max_bytes=max_decoding_bytes, max_pixels=max_image_pixels
        )
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether new inference is refused."""
        return self._draining

    def begin_drain(self) -> None:
        """Refuse new inference from now on; what was accepted is still answered."""
        self._draining = True

    def close(self) -> None:
        """Stop the decoding threads."""
        self._decoder.close()

    def submit(self, calls: Sequence[Call], on_reply: OnReply, *, lend_thread: bool = False) -> None:
        """Run ``calls``; ``on_reply(call, reply)`` is called exactly once for each.

        Refusals are delivered before this returns, everything else from an instance's thread. With
        ``lend_thread`` this thread may be that instance, for a model that is quick; see `Batcher.submit`.
        """

        def on_done(call: Call, outcome: Outcome) -> None:
            # Its model was replaced between finding it and its queue: nobody need know.
            if isinstance(outcome, RetiredError):
                try:
                    if successor := self._successor(call):
                        call.model = successor
                        successor.submit([call], on_done)
                        return
                except Exception as error:  # becomes the call's answer
                    outcome = error
            on_reply(call, _to_reply(call, outcome))

        def on_decoded(call: Call, error: Exception | None) -> None:
            assert call.model is not None
            if error is None:
                call.model.submit([call], on_done)
            else:
                on_done(call, error)

        by_model: dict[ServedModel, list[Call]] = {}
        for call in calls:
            try:
                model = self._admit(call)
                if call.encoded:
                    self._decoder.submit(call, model.metadata.image, on_decoded)
                else:
                    by_model.setdefault(model, []).append(call)
            except Exception as error:  # becomes the call's answer
                on_done(call, error)
        for model, admitted in by_model.items():
            model.submit(admitted, on_done, lend_thread=lend_thread)

    def _successor(self, call: Call) -> ServedModel | None:
        """Return what is served in the place of a call's model, where it takes the same images.

        Raises:
            NotFoundError, UnavailableError: nothing is, any more.
        """
        before = call.model
        assert before is not None
        model = self._repository.find(before.name, call.asked_version)
        is_other = model is not before and model.metadata.image == before.metadata.image
        return model if is_other else None

    def _admit(self, call: Call) -> ServedModel:
        """Check everything that can be wrong with a call before it is queued."""
        if self._draining:
            raise UnavailableError("the server is draining; try again, or elsewhere")
        message = call.message
        version = message.model_version
        model = self._repository.find(message.model_name, version)
        call.model = model
        call.asked_version = version
        call.read(model)
        call.message = None
        return model


def _to_reply(call: Call, outcome: Outcome) -> Reply:
    """Return the answer to a call, and count it."""
    statistics = call.model.statistics if call.model else None
    if not isinstance(outcome, Exception):
        try:
            reply = call.write(outcome)
        except Exception as error:  # no caller is left without an answer
            outcome = error
        else:
            assert statistics is not None
            statistics.count_success(call)
            return reply
    if statistics is not None:
        statistics.count_failure()
    return outcome
