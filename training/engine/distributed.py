"""Training in several processes, started by ``torchrun``: who this process is, and how they exchange tensors.

Each process holds a whole copy of the network and takes every n-th image of each batch; gradients are
averaged and batch norm standardises over all of them, so n processes compute what one would on the same
batch. Only augmentation and dropout draw differently: each process has its own random numbers.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """Process ``rank`` of ``world_size``; one alone exchanges nothing."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def shard(self, rows: Tensor) -> Tensor:
        """Return every ``world_size``-th row, another one in each process: no row twice, none left out."""
        return rows[self.rank :: self.world_size]

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """Undo `shard`: return the ``total`` rows of all processes [total, K] in their first order."""
        if self.world_size == 1:
            return rows
        longest = -(-total // self.world_size)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        distributed.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over all processes."""
        if self.world_size > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def broadcast(self, value: T) -> T:
        """Return the first process's ``value`` in all of them."""
        if self.world_size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def join_process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the processes that ``torchrun`` started beside this one, where it did; part when done."""
    if not distributed.is_torchelastic_launched():
        yield SINGLE_PROCESS
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    # Whatever still holds the group must go first. DistributedDataParallel's destructor would else end it
    # while holding Python's global lock, and wait for ever for gloo's thread, which waits for that lock.
    gc.collect()
    # Only after success: a process that fails must not wait here for the others; torchrun ends them.
    distributed.destroy_process_group()
