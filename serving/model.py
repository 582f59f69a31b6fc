"""One version of a model: opened and proven, then serving from its batcher."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from serving.artifact import IMAGE, ModelMetadata, TensorSpec, read_artifact
from serving.batcher import Batcher
from serving.errors import ArtifactError, DeviceLostError
from serving.golden_replay import replay
from serving.processors import usable_processors
from serving.responses import OUTPUTS, ResponseHeads
from serving.runner import Runner
from serving.runtime_options import RuntimeOptions
from serving.session import CPU_PROVIDER, Device, Session
from serving.statistics import Statistics
from serving.time_limit import StopSignal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from serving.artifact import Artifact
    from serving.batch_requests import OnDone
    from serving.calls import Call

# Told of the execution provider whose device broke, and how.
OnLost: TypeAlias = "Callable[[str, DeviceLostError], None]"

# A model whose full batch takes less is done sooner than other threads are awake, and the processors are
# needed for the requests themselves: it runs on one thread, and on the transport's where that lends one.
# LeNet takes 1 ms and serves 1.6 times as much with one thread as with two; AlexNet at 224 pixels takes 200
# ms.
_QUICK_BATCH_S = 0.005
# Most instances beside the first that full batches of a quick model may take: a bound on idle threads, not a
# measurement, which there is of two processors only.
_MOST_SPARE = 7


@dataclass(frozen=True)
class ModelSettings:
    """How a version is run: a choice of the deployment, never of the artifact."""

    device: Device = "auto"
    max_batch_size: int = 32
    max_queue_rows: int = 8192
    max_queue_bytes: int = 256 * 1024 * 1024
    max_queue_delay_s: float = 0.0
    instance_count: int | None = None  # one, and spare ones where they gain
    intra_op_threads: int | None = None
    batch_invariant: bool = False
    warm_up_sizes: tuple[int, ...] = ()
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)

    @property
    def sizes_to_warm(self) -> tuple[int, ...]:
        """Batch sizes to run before serving: what was asked for, else the powers of two and the largest."""
        if self.warm_up_sizes:
            return tuple(min(size, self.max_batch_size) for size in self.warm_up_sizes)
        powers = (2**exponent for exponent in range(self.max_batch_size.bit_length()))
        return (*powers, self.max_batch_size)

    @property
    def most_threads(self) -> int:
        """Threads a run may use: what was asked for, else an instance's share of the usable processors."""
        return self.intra_op_threads or max(1, usable_processors() // (self.instance_count or 1))


@dataclass(frozen=True)
class VerifiedModel:
    """A session that has reproduced its artifact's golden pairs, and what was measured on the way.

    ``digests``: what its files were, as `Artifact.digests`.
    ``batch_invariant``: each image's answers were the same bits alone and in any batch tried.
    """

    session: Session
    runner: Runner
    metadata: ModelMetadata
    sha256: str
    precision: str
    digests: tuple[str, str]
    golden_count: int
    golden_synthetic: bool
    largest_difference: float
    threads: int
    is_quick: bool
    batch_invariant: bool


def open_verified(
    folder: Path, settings: ModelSettings, within: Path | None = None, stop: StopSignal | None = None
) -> VerifiedModel:
    """Read a version folder, check its hashes (`read_artifact`), then open and prove it (`open_artifact`)."""
    return open_artifact(read_artifact(folder, within), settings, stop)


def open_artifact(
    artifact: Artifact, settings: ModelSettings, stop: StopSignal | None = None
) -> VerifiedModel:
    """Open an artifact on the device, replay its golden pairs there, and warm it up, until told to ``stop``.

    Raises:
        ArtifactError: the version must not be served; the message says why.
        DeviceError: the device cannot run the model.
        DeviceLostError: the device broke.
    """
    stop = stop or StopSignal()
    session, threads, is_quick = _open_session(artifact, settings, stop)
    stop.note_step()
    prove = partial(
        replay, golden=artifact.golden, batch_size=settings.max_batch_size, where=session.provider
    )
    runner = Runner(session)
    replayed = prove(runner.run_unchecked)
    if settings.batch_invariant and not replayed.batch_invariant:
        runner = Runner(session, padded_size=settings.max_batch_size)
        replayed = prove(runner.run_unchecked)
        if not replayed.batch_invariant:
            raise ArtifactError(
                f"its answers differ by batch on {session.provider}, even with every execution padded to "
                f"{settings.max_batch_size} images; serve it without --batch-invariant"
            )
    stop.note_step()
    runner.warm_up(artifact.golden.images[:1], settings.sizes_to_warm)
    return VerifiedModel(
        session=session,
        runner=runner,
        metadata=ModelMetadata.from_props(session.props),
        sha256=artifact.model_sha256,
        precision=str(artifact.manifest.get("precision", "")),
        digests=artifact.digests,
        golden_count=len(artifact.golden.images),
        golden_synthetic=artifact.golden.synthetic,
        largest_difference=replayed.largest_difference,
        threads=threads,
        is_quick=is_quick,
        batch_invariant=replayed.batch_invariant,
    )


class ServedModel:
    """A verified version with its queue and its instances' threads.

    Attributes:
        name, version: the folders' names.
        verified: the session and what is known of it.
        metadata: the facts of its file.
        input: its only input, UINT8 [-1, C, H, W].
        outputs: what can be asked for, FP32 [-1, K] each.
        settings: how it is run.
        instance_count: executions that may run at the same time.
        spare_count: how many more where full batches wait.
        statistics: what was counted.
        response_heads: first halves of its responses.
    """

    def __init__(
        self,
        name: str,
        version: int,
        verified: VerifiedModel,
        settings: ModelSettings,
        on_lost: OnLost = lambda *_: None,
    ) -> None:
        """Start serving; ``on_lost`` is told where its device breaks, from the thread that noticed."""
        self.name = name
        self.version = version
        self.version_text = str(version)
        self.verified = verified
        self.metadata = verified.metadata
        self.input = verified.session.inputs[0]
        self.outputs = tuple(spec for spec in verified.session.outputs if spec.name in OUTPUTS)
        self.settings = settings
        self.statistics = Statistics()
        self.response_heads = ResponseHeads(
            name, self.version_text, len(self.metadata.labels), verified.sha256
        )
        self.instance_count = settings.instance_count or 1
        self.spare_count = _spare_count(verified) if settings.instance_count is None else 0
        # With several instances the work is meant to spread over threads: none is lent.
        self._takes_lent_thread = verified.is_quick and self.instance_count == 1
        self._batcher: Batcher[Call] = Batcher(
            _reporting_loss(verified, on_lost),
            max_batch_size=settings.max_batch_size,
            max_queue_rows=settings.max_queue_rows,
            max_queue_bytes=settings.max_queue_bytes,
            max_queue_delay_s=settings.max_queue_delay_s,
            on_execution=self.statistics.count_execution,
        )
        self._batcher.start(self.instance_count, self.spare_count, f"{name}/{version}")

    def submit(self, calls: list[Call], on_done: OnDone[Call], *, lend_thread: bool = False) -> None:
        """Queue calls whose rows are read; see `Batcher.submit`."""
        self._batcher.submit(calls, on_done, lend_thread=lend_thread and self._takes_lent_thread)

    def waiting(self) -> tuple[int, int]:
        """Return how many requests and rows wait; see `Batcher.waiting`."""
        return self._batcher.waiting()

    def is_made_of(self, artifact: Artifact, settings: ModelSettings) -> bool:
        """Tell whether loading ``artifact`` with ``settings`` would make the same model again."""
        return self.verified.digests == artifact.digests and self.settings == settings

    def close(self, grace_s: float) -> None:
        """Finish what waits, for up to ``grace_s`` seconds, and stop; see `Batcher.close`."""
        self._batcher.close(grace_s)
        self.verified.session.stop()  # an execution that hangs


def _spare_count(verified: VerifiedModel) -> int:
    """Return how many full batches may run beside another: a slow model has all processors already."""
    if not verified.is_quick or verified.session.provider != CPU_PROVIDER:
        return 0
    return max(0, min(usable_processors() // verified.threads - 1, _MOST_SPARE))


def _reporting_loss(
    verified: VerifiedModel, on_lost: OnLost
) -> Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]]:
    # Knows no ServedModel: what a closed one holds is then freed at once, without the garbage collector.
    runner, provider = verified.runner, verified.session.provider

    def execute(images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        try:
            return runner(images)
        except DeviceLostError as error:
            on_lost(provider, error)
            raise

    return execute


def _open_session(artifact: Artifact, settings: ModelSettings, stop: StopSignal) -> tuple[Session, int, bool]:
    """Return the session, checked against the contract, its threads, and whether the model is quick."""
    threads = settings.intra_op_threads or 1
    session = _open_with(artifact, settings, threads, stop)
    stop.note_step()
    _check_contract(session, artifact)
    is_quick = _full_batch_s(session, artifact, threads, settings.max_batch_size) <= _QUICK_BATCH_S
    if not is_quick and settings.most_threads > threads and session.provider == CPU_PROVIDER:
        threads = settings.most_threads
        session = _open_with(artifact, settings, threads, stop)
    return session, threads, is_quick


def _full_batch_s(session: Session, artifact: Artifact, threads: int, max_batch_size: int) -> float:
    """Return how long a full batch takes, on a CPU by that of one image: there it grows with the images.

    A GPU takes many images in the time of one (LeNet on an H100: 0.31 ms for 1 and 0.25 ms for 32).
    """
    runner, image = Runner(session), artifact.golden.images[:1]
    if session.provider != CPU_PROVIDER:
        return runner.seconds_a_batch(image, max_batch_size)
    # Other models may be loading beside: what one thread computes is its own time, whatever they take.
    clock = time.thread_time if threads == 1 else time.perf_counter
    return runner.seconds_a_batch(image, 1, clock) * max_batch_size


def _open_with(artifact: Artifact, settings: ModelSettings, threads: int, stop: StopSignal) -> Session:
    return Session(
        artifact.model,
        device=settings.device,
        intra_op_threads=threads,
        options=settings.runtime,
        stop=stop,
    )


def _check_contract(session: Session, artifact: Artifact) -> None:
    metadata = ModelMetadata.from_props(session.props)
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
    if artifact.golden.images.shape[1:] != metadata.image.shape:
        raise ArtifactError(
            f"the golden images are {artifact.golden.images.shape[1:]}, the model takes "
            f"{metadata.image.shape}: model and golden pairs do not belong together"
        )


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs) or "nothing"
