"""Answers the RPCs other than inference: health, metadata, statistics, loading. Independent of gRPC."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, NamedTuple

from foldserve.artifact.format import MODEL_FILE
from foldserve.runtime.session import CPU_PROVIDER
from foldserve.serving.errors import NotFoundError, PermissionDeniedError, UnimplementedError
from foldserve.serving.pb import open_inference_pb2 as pb
from foldserve.serving.protocol.names import CLASSIFIER_SERVICE, INFERENCE_SERVICE
from foldserve.text import join_names, quote

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from google.protobuf.message import Message

    from foldserve.artifact.format import TensorSpec
    from foldserve.serving.model.served_model import ServedModel
    from foldserve.serving.repository.repository import ModelRepository
    from foldserve.serving.server_state import Lifecycle

_PLATFORM = "onnxruntime_onnx"
_DATA_TYPES = {"UINT8": pb.TYPE_UINT8, "FP32": pb.TYPE_FP32}


class ManagementMethod(NamedTuple):
    """An RPC: the type of its request and the function that answers it; slow ones block an event loop."""

    request_type: type[Message]
    answer: Callable[[Any], Message]
    is_slow: bool = False


class ManagementService:
    """Reports on the server and its models, and loads and unloads models.

    Each RPC is a method that returns a message or raises a ServingError.

    Attributes:
        methods: the RPCs of INFERENCE_SERVICE by name, without inference.

    Args:
        repository: the models.
        lifecycle: the server's state.
        model_control: whether callers may load and unload models.
    """

    def __init__(self, repository: ModelRepository, lifecycle: Lifecycle, *, model_control: bool) -> None:
        self._repository = repository
        self._index = repository.index
        self._lifecycle = lifecycle
        self._model_control = model_control
        self._known_models: set[str] = set()
        self.methods = {
            "ServerLive": ManagementMethod(pb.ServerLiveRequest, self.server_live),
            "ServerReady": ManagementMethod(pb.ServerReadyRequest, self.server_ready),
            "ModelReady": ManagementMethod(pb.ModelReadyRequest, self.model_ready),
            "ServerMetadata": ManagementMethod(pb.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": ManagementMethod(pb.ModelMetadataRequest, self.model_metadata),
            "ModelConfig": ManagementMethod(pb.ModelConfigRequest, self.model_config),
            "ModelStatistics": ManagementMethod(pb.ModelStatisticsRequest, self.model_statistics),
            "RepositoryIndex": ManagementMethod(pb.RepositoryIndexRequest, self.repository_index),
            "RepositoryModelLoad": ManagementMethod(pb.RepositoryModelLoadRequest, self.load, is_slow=True),
            "RepositoryModelUnload": ManagementMethod(
                pb.RepositoryModelUnloadRequest, self.unload, is_slow=True
            ),
        }

    def is_ready(self) -> bool:
        """Return whether the server is ready: it has loaded, a model serves, and it is not leaving."""
        return not self.unready_reasons()

    def unready_reasons(self) -> list[str]:
        """Return why the server is not ready; empty if it is."""
        reasons = []
        if self._lifecycle.is_leaving:
            reasons.append("draining")
        if not self._lifecycle.has_loaded:
            reasons.append("loading the models")
        elif not self._index.ready_models():
            reasons.append("no model serves")
        return reasons

    def not_serving(self) -> list[tuple[str, int, str]]:
        """Return the versions that do not serve: name, number and reason of each."""
        return [
            (entry.name, entry.version, entry.reason)
            for entry in self._index.entries()
            if entry.state != "READY"
        ]

    def health(self) -> dict[str, bool]:
        """Return which of these serve, for grpc.health.v1: the server (""), its services, each model."""
        serving = set()
        if not self._lifecycle.is_leaving:
            serving = {model.name for model in self._index.ready_models()}
        # A removed model stays NOT_SERVING, so that its watchers are told.
        self._known_models |= {entry.name for entry in self._index.entries()}
        models = {name: name in serving for name in self._known_models}
        return models | dict.fromkeys(("", INFERENCE_SERVICE, CLASSIFIER_SERVICE), self.is_ready())

    def server_live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Answer that the process is alive."""
        return pb.ServerLiveResponse(live=True)

    def server_ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Answer `is_ready`."""
        return pb.ServerReadyResponse(ready=self.is_ready())

    def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Answer whether a model serves.

        One that is not in the repository does not, and is no error: callers wait with this RPC for a model
        that is still to come, as Triton lets them.
        """
        try:
            ready = self._index.is_ready(request.name, request.version)
        except NotFoundError:
            ready = False
        return pb.ModelReadyResponse(ready=ready and not self._lifecycle.is_leaving)

    def server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Answer the server's name, version and protocol extensions."""
        extensions = ["classification", "model_configuration", "model_repository", "statistics"]
        return pb.ServerMetadataResponse(name="foldserve", version=own_version(), extensions=extensions)

    def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Describe a model; raises as `ModelRepository.find`."""
        model = self._index.find(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=self._index.ready_versions(model.name),
            platform=_PLATFORM,
            inputs=[_tensor(model.input)],
            outputs=[_tensor(spec) for spec in model.outputs],
            properties=model.metadata.to_properties() | {"version": model.version_text} | _facts(model),
        )

    def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """Describe how a model is run; raises as `ModelRepository.find`."""
        model = self._index.find(request.name, request.version)
        settings = model.settings
        kind = pb.ModelInstanceGroup.KIND_CPU
        if model.verified.session.provider != CPU_PROVIDER:
            kind = pb.ModelInstanceGroup.KIND_GPU
        facts = _facts(model) | {"intra_op_threads": str(model.verified.threads)}
        return pb.ModelConfigResponse(
            config=pb.ModelConfig(
                name=model.name,
                platform=_PLATFORM,
                backend="onnxruntime",
                max_batch_size=settings.max_batch_size,
                input=[
                    pb.ModelInput(
                        name=model.input.name,
                        data_type=_data_type(model.input),
                        dims=model.input.shape[1:],
                    )
                ],
                output=[
                    pb.ModelOutput(name=spec.name, data_type=_data_type(spec), dims=spec.shape[1:])
                    for spec in model.outputs
                ],
                instance_group=[
                    pb.ModelInstanceGroup(name=model.name, count=model.instance_count, kind=kind)
                ],
                default_model_filename=MODEL_FILE,
                dynamic_batching=pb.ModelDynamicBatching(
                    max_queue_delay_microseconds=round(settings.max_queue_delay_s * 1e6)
                ),
                parameters={key: pb.ModelParameter(string_value=text) for key, text in facts.items()},
            )
        )

    def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """Answer the statistics of one version, model or all models; raises as `ModelRepository.find`."""
        if request.version:
            models = [self._index.find(request.name, request.version)]
        else:
            models = self._index.ready_models()
            if request.name:
                self._index.ready_versions(request.name)  # raises if the model does not exist
                models = [model for model in models if model.name == request.name]
        return pb.ModelStatisticsResponse(
            model_stats=[model.statistics.to_message(model.name, model.version_text) for model in models]
        )

    def repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """List the versions; raises NotFoundError if the request names a repository."""
        _check_repository_name(request.repository_name)
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=str(entry.version), state=entry.state, reason=entry.reason
                )
                for entry in self._index.entries()
                if not request.ready or entry.state == "READY"
            ]
        )

    def load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """Load a model from its folder; raises PermissionDeniedError, or as `ModelRepository.load`."""
        self._check_control(request.repository_name)
        if request.parameters:
            raise UnimplementedError(
                f"loading with parameters ({join_names(request.parameters)}) is not supported: send none; "
                "models are configured by the server's flags and their model.toml"
            )
        self._repository.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    def unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        """Stop serving a model; raises NotFoundError, or PermissionDeniedError."""
        self._check_control(request.repository_name)
        self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _check_control(self, repository_name: str) -> None:
        _check_repository_name(repository_name)
        if not self._model_control:
            raise PermissionDeniedError(
                "callers may not load or unload models on this server; start it with --model-control to "
                "allow it (the default only if it listens on a loopback address)"
            )


def _check_repository_name(name: str) -> None:
    if name:
        raise NotFoundError(f"no repository {quote(name)}; the server has a single one: leave the name empty")


def _facts(model: ServedModel) -> dict[str, str]:
    return {
        "model_sha256": model.verified.sha256,
        "provider": model.verified.session.provider,
        "batch_invariant": "true" if model.verified.batch_invariant else "false",
    }


def _tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _data_type(spec: TensorSpec) -> pb.DataType:
    return _DATA_TYPES[spec.datatype]


def own_version() -> str:
    """Return foldserve's version."""
    try:
        return package_version("foldserve")
    except PackageNotFoundError:  # run from a source folder without installation
        return "0+source"
