"""What each RPC does: messages in, messages or domain errors out. Knows no gRPC; any transport can call it.

Control RPCs are plain functions that return a message or raise a ServingError. Inference goes through
`submit`, which takes as many calls as a transport has at hand and answers each from an instance's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from serving.batcher import Outcome, Request
from serving.errors import NotFoundError, ServingError, UnavailableError
from serving.model import OUTPUTS
from serving.pb import open_inference_pb2 as pb
from serving.tensors import read_output_names, read_rows, shown, write_response

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from serving.model import ServedModel
    from serving.repository import Repository

Reply: TypeAlias = pb.ModelInferResponse | Exception

_NO_ROWS = np.empty((0,), np.uint8)


@dataclass(slots=True, eq=False, kw_only=True)
class InferCall(Request):
    """One ModelInfer. Transports extend it with whatever they answer through.

    Set ``cancelled`` when the caller goes away; ``deadline_s`` is on time.monotonic's clock.
    """

    message: pb.ModelInferRequest
    rows: np.ndarray = field(default_factory=lambda: _NO_ROWS)  # set by `Servicer.submit`
    model: ServedModel | None = None
    output_names: tuple[str, ...] = OUTPUTS


OnReply: TypeAlias = Callable[[InferCall, Reply], None]


class Servicer:
    """The protocol's RPCs over one repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._loaded = False
        self._draining = False
        # The control RPCs by name, with the type of their request: what a transport registers.
        self.control: dict[str, tuple[type[Message], Callable[..., Message]]] = {
            "ServerLive": (pb.ServerLiveRequest, self.server_live),
            "ServerReady": (pb.ServerReadyRequest, self.server_ready),
            "ModelReady": (pb.ModelReadyRequest, self.model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, self.model_metadata),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self.repository_index),
        }

    def end_loading(self) -> None:
        """Note that start-up loading has ended."""
        self._loaded = True

    def begin_drain(self) -> None:
        """Refuse new inference from now on; what was accepted is still answered."""
        self._draining = True

    def is_ready(self) -> bool:
        """Tell whether the server takes inference: loaded, something serves, not draining."""
        return self._loaded and not self._draining and bool(self._repository.ready_models())

    def server_live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Answer that the process answers."""
        return pb.ServerLiveResponse(live=True)

    def server_ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Answer `is_ready`."""
        return pb.ServerReadyResponse(ready=self.is_ready())

    def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Answer whether a model serves; raises NotFoundError where there is no such model or version."""
        ready = self._repository.is_ready(request.name, request.version)
        return pb.ModelReadyResponse(ready=ready and not self._draining)

    def server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Answer the server's name, version and protocol extensions."""
        return pb.ServerMetadataResponse(
            name="foldserve", version=_own_version(), extensions=["model_repository"]
        )

    def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Describe a model; raises NotFoundError or UnavailableError as `Repository.find` does."""
        model = self._repository.find(request.name, request.version)
        session = model.verified.session
        properties = model.verified.metadata.to_properties() | {
            "version": model.version_text,
            "model_sha256": model.verified.sha256,
            "provider": session.provider,
        }
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=self._repository.ready_versions(model.name),
            platform="onnxruntime_onnx",
            inputs=[
                tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in session.inputs
            ],
            outputs=[
                tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape)
                for spec in session.outputs
                if spec.name in OUTPUTS
            ],
            properties=properties,
        )

    def repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """List the versions; raises NotFoundError where a repository is named."""
        if request.repository_name:
            raise NotFoundError(
                f"there is no repository {shown(request.repository_name)}; the server has one, leave the "
                "name empty"
            )
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=str(entry.version), state=entry.state, reason=entry.reason
                )
                for entry in self._repository.index()
                if not request.ready or entry.state == "READY"
            ]
        )

    def submit(self, calls: Sequence[InferCall], on_reply: OnReply) -> None:
        """Run ``calls``; ``on_reply(call, reply)`` is called exactly once for each.

        The reply is a response or an error. Refusals are delivered before this returns, everything else from
        an instance's thread.
        """

        def on_done(call: InferCall, outcome: Outcome) -> None:
            on_reply(call, outcome if isinstance(outcome, Exception) else _to_response(call, outcome))

        by_model: dict[ServedModel, list[InferCall]] = {}
        for call in calls:
            try:
                by_model.setdefault(self._admit(call), []).append(call)
            except ServingError as error:
                on_reply(call, error)
        for model, admitted in by_model.items():
            model.submit(admitted, on_done)

    def _admit(self, call: InferCall) -> ServedModel:
        """Check everything that can be wrong with a call before it is queued."""
        if self._draining:
            raise UnavailableError("the server is draining; try again, or elsewhere")
        message = call.message
        model = self._repository.find(message.model_name, message.model_version)
        call.rows = read_rows(message, model.verified.input)
        if message.outputs:
            call.output_names = read_output_names(message, OUTPUTS)
        call.model = model
        return model


def _own_version() -> str:
    try:
        return package_version("foldserve")
    except PackageNotFoundError:  # run from a source folder that was never installed
        return "0+source"


def _to_response(call: InferCall, arrays: tuple[np.ndarray, ...]) -> pb.ModelInferResponse:
    assert call.model is not None
    response = pb.ModelInferResponse(
        model_name=call.model.name, model_version=call.model.version_text, id=call.message.id
    )
    if call.output_names != OUTPUTS:
        arrays = tuple(arrays[OUTPUTS.index(name)] for name in call.output_names)
    write_response(response, call.output_names, arrays)
    return response
