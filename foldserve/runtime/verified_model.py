"""Opens a version on a device and verifies it against its golden pairs, before it serves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from foldserve.artifact.format import IMAGE, OUTPUTS, ModelMetadata, TensorSpec, read_artifact
from foldserve.artifact.golden import replay
from foldserve.errors import ArtifactError
from foldserve.runtime.runner import ModelRunner
from foldserve.runtime.session import CPU_PROVIDER, Session
from foldserve.runtime.time_limit import StopSignal

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.artifact.format import Artifact
    from foldserve.runtime.model_settings import ModelSettings

# A model whose full batch takes less finishes before other threads wake up, and the CPUs are needed for the
# requests themselves: it runs on one thread, or inline on the transport's thread. LeNet takes 1 ms and serves
# 1.6 times as many requests with one thread as with two; AlexNet at 224 pixels takes 200 ms.
_QUICK_BATCH_S = 0.005


# Sizes besides the full batch that executions are filled up to on a GPU: a lone image costs no more than it
# does alone, and a few no more than eight. Each costs the memory of another session.
_GPU_BATCH_SIZES = (1, 8)


@dataclass(frozen=True)
class VerifiedModel:
    """Holds a session that has reproduced its artifact's golden pairs, and the measurements of that.

    ``digests`` are those of its files, as `Artifact.digests`. ``batch_invariant`` tells whether each image
    had bit-identical outputs alone and in any batch tried.
    """

    session: Session
    runner: ModelRunner
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
    """Read a version folder with `read_artifact`, then open and verify it with `open_artifact`."""
    return open_artifact(read_artifact(folder, within), settings, stop)


def open_artifact(
    artifact: Artifact, settings: ModelSettings, stop: StopSignal | None = None
) -> VerifiedModel:
    """Open an artifact on the device, replay its golden pairs there, and warm it up.

    ``stop`` interrupts all of it.

    Raises:
        ArtifactError: the version must not be served; the message has the reason.
        DeviceError: the device cannot run the model.
        DeviceLostError: the device was lost.
    """
    stop = stop or StopSignal()
    session, threads, is_quick = _open_session(artifact, settings, stop)
    stop.note_step()
    metadata = ModelMetadata.from_props(session.props)
    verify = partial(
        replay,
        golden=artifact.golden,
        batch_size=settings.max_batch_size,
        where=session.provider,
        temperature=metadata.temperature,
    )
    runner = ModelRunner(session, _sessions_by_size(session, artifact, settings, stop))
    replayed = verify(runner.run_unchecked)
    if settings.batch_invariant and not replayed.batch_invariant:
        runner = ModelRunner(session, [(settings.max_batch_size, session)])
        replayed = verify(runner.run_unchecked)
        if not replayed.batch_invariant:
            raise ArtifactError(
                f"an image's outputs depend on its batch on {session.provider}, even with every execution "
                f"padded to {settings.max_batch_size} images; serve it without --batch-invariant"
            )
    stop.note_step()
    runner.warm_up(artifact.golden.images[:1], settings.sizes_to_warm)
    return VerifiedModel(
        session=session,
        runner=runner,
        metadata=metadata,
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


def _open_session(artifact: Artifact, settings: ModelSettings, stop: StopSignal) -> tuple[Session, int, bool]:
    """Return a session with checked inputs and outputs, its threads, and whether the model is quick."""
    threads = settings.intra_op_threads or 1
    session = _open_with(artifact, settings, threads, stop)
    stop.note_step()
    _check_contract(session, artifact)
    is_quick = _full_batch_s(session, artifact, threads, settings.max_batch_size) <= _QUICK_BATCH_S
    if not is_quick and settings.most_threads > threads and session.provider == CPU_PROVIDER:
        threads = settings.most_threads
        session = _open_with(artifact, settings, threads, stop)
    return session, threads, is_quick


def _sessions_by_size(
    session: Session, artifact: Artifact, settings: ModelSettings, stop: StopSignal
) -> list[tuple[int, Session]]:
    """Return the batch sizes that executions are filled up to on a GPU, with a session for each.

    ONNX Runtime plans each convolution of a session anew whenever a batch has another size than the one
    before: 2 to 4 ms per convolution on an H100, where a full batch of LeNet takes 0.25 ms in all. So each
    session sees batches of one size alone. On a CPU there is nothing to plan.
    """
    if session.provider == CPU_PROVIDER:
        return []
    full = settings.max_batch_size
    # A limit on memory holds per session, so one session does it all.
    is_single = settings.batch_invariant or settings.cuda.gpu_mem_limit_mib is not None
    smaller = [] if is_single else [size for size in _GPU_BATCH_SIZES if size < full]
    threads = settings.intra_op_threads or 1
    return [*((size, _open_with(artifact, settings, threads, stop)) for size in smaller), (full, session)]


def _full_batch_s(session: Session, artifact: Artifact, threads: int, max_batch_size: int) -> float:
    """Return the time of a full batch in seconds.

    On a CPU it is estimated from one image, since time grows with the number of images. A GPU runs many
    images in the time of one (LeNet on an H100: 0.31 ms for 1 and 0.25 ms for 32), so a full batch is timed.
    """
    runner, image = ModelRunner(session), artifact.golden.images[:1]
    if session.provider != CPU_PROVIDER:
        return runner.seconds_per_batch(image, max_batch_size)
    # Other models may be loading at the same time: with one thread, its CPU time is independent of them.
    clock = time.thread_time if threads == 1 else time.perf_counter
    return runner.seconds_per_batch(image, 1, clock) * max_batch_size


def _open_with(artifact: Artifact, settings: ModelSettings, threads: int, stop: StopSignal) -> Session:
    return Session(
        artifact.model,
        device=settings.device,
        intra_op_threads=threads,
        options=settings,
        stop=stop,
    )


def _check_contract(session: Session, artifact: Artifact) -> None:
    metadata = ModelMetadata.from_props(session.props)
    expected_input = TensorSpec(IMAGE, "UINT8", (-1, *metadata.image.shape))
    if session.inputs != (expected_input,):
        raise ArtifactError(
            f"the model's input is {_listed(session.inputs)}; its metadata says {_listed((expected_input,))}"
        )
    outputs = {output.name: output for output in session.outputs}
    class_count = len(metadata.labels)
    for name in OUTPUTS:
        expected = TensorSpec(name, "FP32", (-1, class_count))
        if outputs.get(name) != expected:
            raise ArtifactError(
                f"the model's outputs are {_listed(session.outputs)}; with {class_count} labels they must "
                f"include {_listed((expected,))}"
            )
    if artifact.golden.images.shape[1:] != metadata.image.shape:
        raise ArtifactError(
            f"the golden images are {artifact.golden.images.shape[1:]}, but the model takes "
            f"{metadata.image.shape}: the golden pairs are of another model"
        )


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs) or "nothing"
