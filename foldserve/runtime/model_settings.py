"""Defines how a version is run: settings of the deployment, never of the artifact."""

from __future__ import annotations

from dataclasses import dataclass, field

from foldserve.runtime.cpus import usable_cpus
from foldserve.runtime.options import (
    Device,  # a dataclass's annotations
    RuntimeOptions,
)


@dataclass(frozen=True)
class ModelSettings:
    """Holds the settings of one model; the flags of the same names explain them."""

    device: Device = "auto"
    max_batch_size: int = 32
    max_queue_rows: int = 8192
    max_queue_bytes: int = 256 * 1024 * 1024
    max_queue_delay_s: float = 0.0
    instance_count: int | None = None  # None: one, and overflow instances if they help
    intra_op_threads: int | None = None
    batch_invariant: bool = False
    warm_up_sizes: tuple[int, ...] = ()
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)

    @property
    def warm_up_batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes to run before serving: as configured, else the powers of two and the largest size."""
        if self.warm_up_sizes:
            return tuple(min(size, self.max_batch_size) for size in self.warm_up_sizes)
        powers = (2**exponent for exponent in range(self.max_batch_size.bit_length()))
        return (*powers, self.max_batch_size)

    @property
    def max_threads(self) -> int:
        """Most threads per execution: as configured, else an instance's share of the usable CPUs."""
        return self.intra_op_threads or max(1, usable_cpus() // (self.instance_count or 1))
