"""One version of a model: opened and proven, then serving from its batcher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.artifact import IMAGE, LOGITS, PROBABILITIES, ModelMetadata, TensorSpec, read_artifact
from serving.batcher import Batcher
from serving.errors import ArtifactError
from serving.golden_replay import replay
from serving.processors import usable_processors
from serving.session import Device, Session

if TYPE_CHECKING:
    from pathlib import Path

    from serving.batcher import OnDone
    from serving.servicer import InferCall

OUTPUTS = (LOGITS, PROBABILITIES)


@dataclass(frozen=True)
class ModelSettings:
    """How a version is run: a choice of the deployment, never of the artifact."""

    device: Device = "auto"
    max_batch_size: int = 32
    max_queue_rows: int = 8192
    max_queue_bytes: int = 256 * 1024 * 1024
    instance_count: int = 1
    intra_op_threads: int | None = None

    @property
    def threads(self) -> int:
        """Threads a run may use: what was asked for, else an instance's share of the usable processors."""
        return self.intra_op_threads or max(1, usable_processors() // self.instance_count)


@dataclass(frozen=True)
class VerifiedModel:
    """A session that has reproduced its artifact's golden pairs."""

    session: Session
    metadata: ModelMetadata
    sha256: str
    golden_count: int
    largest_difference: float

    @property
    def input(self) -> TensorSpec:
        """The only input: UINT8 [-1, C, H, W]."""
        return self.session.inputs[0]


def open_verified(folder: Path, settings: ModelSettings) -> VerifiedModel:
    """Read a version folder, check its hashes, open it on the device and replay its golden pairs there.

    Raises:
        ArtifactError: the version must not be served; the message says why.
        DeviceError: the device cannot run the model.
    """
    artifact = read_artifact(folder)
    session = Session(artifact.model, device=settings.device, intra_op_threads=settings.threads)
    metadata = ModelMetadata.from_props(session.props)
    _check_contract(session, metadata)
    if artifact.golden.images.shape[1:] != metadata.image.shape:
        raise ArtifactError(
            f"the golden images are {artifact.golden.images.shape[1:]}, the model takes "
            f"{metadata.image.shape}: "
            "model and golden pairs do not belong together"
        )
    largest_difference = replay(
        lambda images: session.run((LOGITS,), {IMAGE: images})[0],
        artifact.golden,
        batch_size=settings.max_batch_size,
        where=session.provider,
    )
    return VerifiedModel(
        session, metadata, artifact.model_sha256, len(artifact.golden.images), largest_difference
    )


class ServedModel:
    """A verified version with its queue and its instances' threads.

    Attributes:
        name, version: the folders' names.
        verified: the session and what is known of it.
    """

    def __init__(self, name: str, version: int, verified: VerifiedModel, settings: ModelSettings) -> None:
        self.name = name
        self.version = version
        self.version_text = str(version)
        self.verified = verified
        session = verified.session
        self._batcher: Batcher[InferCall] = Batcher(
            lambda rows: session.run(OUTPUTS, {IMAGE: rows}),
            max_batch_size=settings.max_batch_size,
            max_queue_rows=settings.max_queue_rows,
            max_queue_bytes=settings.max_queue_bytes,
        )
        self._batcher.start(settings.instance_count, f"{name}/{version}")

    def submit(self, calls: list[InferCall], on_done: OnDone[InferCall]) -> None:
        """Queue calls whose rows are read; see `Batcher.submit`."""
        self._batcher.submit(calls, on_done)

    def close(self, grace_s: float) -> None:
        """Finish what waits, for up to ``grace_s`` seconds, and stop; see `Batcher.close`."""
        self._batcher.close(grace_s)


def _check_contract(session: Session, metadata: ModelMetadata) -> None:
    expected_input = TensorSpec(IMAGE, "UINT8", (-1, *metadata.image.shape))
    if session.inputs != (expected_input,):
        raise ArtifactError(
            f"the model takes {_listed(session.inputs)}; its metadata says {_listed((expected_input,))}"
        )
    outputs = {output.name: output for output in session.outputs}
    class_count = len(metadata.labels)
    for name in OUTPUTS:
        expected = TensorSpec(name, "FP32", (-1, class_count))
        if outputs.get(name) != expected:
            raise ArtifactError(
                f"the model gives {_listed(session.outputs)}; with {class_count} labels it must give "
                f"{_listed((expected,))}"
            )


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs) or "nothing"
