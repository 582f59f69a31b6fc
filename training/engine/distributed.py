"""Joins the processes that a launcher started, and exchanges tensors between them.

Each process has a copy of the network and takes every n-th image of each batch. Gradients are averaged and
batch norm standardises over all processes, so that n processes compute the same as one on the same batch.
Only augmentation and dropout differ, since each process draws its own random numbers.
"""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed

from foldserve.training.engine.launch import Place, find_place
from foldserve.training.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

T = TypeVar("T")

# Tasks of a cluster start minutes apart, as images are pulled. It is also how long one waits for the others'
# next exchange: the main process may write a report meanwhile.
_MEETING_LIMIT = timedelta(minutes=30)


@dataclass(frozen=True)
class ProcessGroup:
    """Exchanges tensors as process ``rank`` of ``world_size``; a single process exchanges nothing."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def shard(self, rows: Tensor) -> Tensor:
        """Return every ``world_size``-th row, from ``rank`` on: each row belongs to exactly one process."""
        return rows[self.rank :: self.world_size]

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """Undo `shard`: return the ``total`` rows of all processes [total, K] in their original order."""
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
        """Return the main process's ``value`` in all processes."""
        if self.world_size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def join_process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the process group if a launcher started this process as one of several, and leave it on exit.

    A group that is there already, as Ray Train makes it, is used and not left.

    Raises:
        RunError: the launcher's variables are incomplete or wrong, or the processes do not meet in time.
    """
    if distributed.is_initialized():
        yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
        return
    place = find_place(os.environ)
    if place is None:
        yield SINGLE_PROCESS
        return
    _initialize("nccl" if device.type == "cuda" else "gloo", place)
    yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    # Collect whatever still refers to the group. Otherwise DistributedDataParallel's destructor ends it while
    # holding Python's global lock, and waits for ever for gloo's thread, which waits for that lock.
    gc.collect()
    # Only after success: a process that fails must not wait here for the others, which the launcher stops.
    distributed.destroy_process_group()


def _initialize(backend: str, place: Place) -> None:
    if distributed.is_torchelastic_launched():  # torchrun has a store at the address already
        distributed.init_process_group(backend)
        return
    try:
        distributed.init_process_group(
            backend,
            init_method=place.url,
            rank=place.rank,
            world_size=place.world_size,
            timeout=_MEETING_LIMIT,
        )
    except (distributed.DistError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(
            f"process {place.rank} of {place.world_size} did not meet the others at {place.url}: {reason}"
        ) from error
