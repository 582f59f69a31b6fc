"""How a model is run: settings that belong to the deployment, never to the artifact."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.options import Device, RuntimeOptions

_MIB = 1024 * 1024

_BatchSize = Annotated[int, Field(ge=1, le=65536, strict=True)]


class SharedSettings(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Settings with a flag for all models and a key in model.toml for one. Docstrings are the flags' help."""

    max_batch_size: int = Field(default=32, ge=1, le=65536)
    """Most images in one execution. Larger requests are split, and their answers joined again."""
    max_queue_delay_ms: float = Field(default=0.0, ge=0, le=10_000)
    """Longest time a request waits for a fuller batch, in milliseconds. A request that is alone never
    waits."""
    batch_invariant: bool = False
    """Return bit-identical logits for an image whatever batch it is in; pads every execution to
    --max-batch-size if needed."""
    instances: int | None = Field(default=None, ge=1, le=256)
    """Executions of one model that may run at the same time. By default one; if a full batch takes less than
    5 ms, more full batches run beside it on idle CPUs."""
    intra_op_threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads per execution. By default measured: one if a full batch takes less than 5 ms, otherwise the
    usable CPUs divided by the number of instances."""
    max_queue_rows: int = Field(default=8192, ge=1)
    """Most images that may wait for one model. Requests beyond it are refused at once with
    RESOURCE_EXHAUSTED."""
    max_queue_mib: int = Field(default=256, ge=1)
    """Most MiB of images that may wait for one model, or wait to be decoded. Requests beyond it are refused
    at once with RESOURCE_EXHAUSTED."""

    @property
    def max_queue_bytes(self) -> int:
        """The same as ``max_queue_mib``."""
        return self.max_queue_mib * _MIB

    @property
    def max_queue_delay_s(self) -> float:
        """The same as ``max_queue_delay_ms``."""
        return self.max_queue_delay_ms / 1000

    @property
    def most_threads(self) -> int:
        """Threads one execution may use: as set, else an instance's share of the usable CPUs."""
        return self.intra_op_threads or max(1, usable_cpus() // (self.instances or 1))


class FileSettings(SharedSettings, RuntimeOptions, frozen=True):
    """Settings that model.toml may give: the shared ones, ONNX Runtime's options, and the warm-up."""

    warm_up_sizes: tuple[_BatchSize, ...] = Field(default=(), strict=False)
    """Batch sizes to run before a version serves; by default 1, 2, 4 and so on up to max_batch_size."""

    @property
    def sizes_to_warm(self) -> tuple[int, ...]:
        """Batch sizes to run before serving: as set, else the powers of two and the largest."""
        if self.warm_up_sizes:
            return tuple(min(size, self.max_batch_size) for size in self.warm_up_sizes)
        powers = (2**exponent for exponent in range(self.max_batch_size.bit_length()))
        return (*powers, self.max_batch_size)


class ModelSettings(FileSettings, frozen=True):
    """All settings with which one version is run: its model.toml above the server's flags."""

    device: Device = "auto"
    """Execution device; the server has one for all models."""
