"""Serves one verified version of a model through its batcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from foldserve.artifact.format import OUTPUTS
from foldserve.errors import DeviceLostError
from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.session import CPU_PROVIDER
from foldserve.serving.batching.batcher import DynamicBatcher
from foldserve.serving.model.statistics import Statistics
from foldserve.serving.protocol.infer_response import ResponseHeads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from foldserve.artifact.format import Artifact
    from foldserve.runtime.model_settings import ModelSettings
    from foldserve.runtime.verified_model import VerifiedModel
    from foldserve.serving.batching.request import OnDone, R

# Called with the execution provider whose device was lost, and the error.
OnLost: TypeAlias = "Callable[[str, DeviceLostError], None]"

# Most overflow instances, which run full batches of a quick model beside the first instance. It bounds idle
# threads and is not measured: measurements exist for two CPUs only.
_MAX_OVERFLOW = 7


# Share of an execution that a slow model may wait afterwards for the callers that it answered. AlexNet-224 on
# two CPUs does 118 images/s in batches of 8 and 135 in batches of 16, for the same 16 callers.
_GATHER_SHARE = 0.05


class ServedModel:
    """Runs requests on a verified version: a queue, and the threads of its instances.

    Attributes:
        name, version: names of the model's and the version's folder.
        verified: the session, with the results of its verification.
        metadata: metadata of the model file.
        input: its only input, UINT8 [-1, C, H, W].
        outputs: its outputs, FP32 [-1, K] each.
        settings: how it is run.
        instance_count: executions that may run at the same time.
        overflow_count: further executions while full batches are queued.
        statistics: counters of its requests and executions.
        response_heads: serialized beginnings of its responses.
    """

    def __init__(
        self,
        name: str,
        version: int,
        verified: VerifiedModel,
        settings: ModelSettings,
        on_lost: OnLost = lambda *_: None,
    ) -> None:
        """Start the instances; ``on_lost`` is called if the device is lost, from the thread that noticed."""
        self.name = name
        self.version = version
        self.version_text = str(version)
        self.verified = verified
        self.metadata = verified.metadata
        self.input = verified.session.inputs[0]
        self.outputs = tuple(spec for spec in verified.session.outputs if spec.name in OUTPUTS)
        self.settings = settings
        self.statistics = Statistics()
        self.response_heads = ResponseHeads(name, self.version_text, self.metadata.labels, verified.sha256)
        self.instance_count = settings.instances or 1
        self.overflow_count = _overflow_count(verified) if settings.instances is None else 0
        # With several instances the work is meant to spread over threads: none is lent.
        self._runs_inline = verified.is_quick and self.instance_count == 1
        # Any: callers get back the kind of request that they handed in.
        self._batcher: DynamicBatcher[Any] = DynamicBatcher(
            _reporting_loss(verified, on_lost),
            max_batch_size=settings.max_batch_size,
            max_queue_rows=settings.max_queue_rows,
            max_queue_bytes=settings.max_queue_bytes,
            max_queue_delay_s=settings.max_queue_delay_s,
            gather_share=0.0 if verified.is_quick else _GATHER_SHARE,
            on_execution=self.statistics.count_execution,
        )
        self._batcher.start(self.instance_count, self.overflow_count, f"{name}/{version}")

    def submit(self, calls: Sequence[R], on_done: OnDone[R], *, run_inline: bool = False) -> None:
        """Queue calls whose rows are read; see `DynamicBatcher.submit`."""
        self._batcher.submit(calls, on_done, run_inline=run_inline and self._runs_inline)

    def waiting(self) -> tuple[int, int]:
        """Return how many requests and rows wait; see `DynamicBatcher.waiting`."""
        return self._batcher.waiting()

    def is_made_of(self, artifact: Artifact, settings: ModelSettings) -> bool:
        """Tell whether loading ``artifact`` with ``settings`` would give the same model again."""
        return self.verified.digests == artifact.digests and self.settings == settings

    def close(self, grace_s: float) -> None:
        """Finish what waits, for up to ``grace_s`` seconds, and stop; see `DynamicBatcher.close`."""
        self._batcher.close(grace_s)
        self.verified.session.stop()  # interrupts an execution that hangs


def _overflow_count(verified: VerifiedModel) -> int:
    """Return the number of overflow instances: none for a slow model, which uses all CPUs already."""
    if not verified.is_quick or verified.session.provider != CPU_PROVIDER:
        return 0
    return max(0, min(usable_cpus() // verified.threads - 1, _MAX_OVERFLOW))


def _reporting_loss(
    verified: VerifiedModel, on_lost: OnLost
) -> Callable[[NDArray[np.uint8]], Sequence[NDArray[np.float32]]]:
    # Without a reference to the ServedModel, a closed one is freed at once, without the garbage collector.
    runner, provider = verified.runner, verified.session.provider

    def execute(images: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        try:
            return runner(images)
        except DeviceLostError as error:
            on_lost(provider, error)
            raise

    return execute
