"""Selects the device, and sets torch's threads, memory and determinism."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from foldserve.c_allocator import keep_freed_memory
from foldserve.errors import DeviceError
from foldserve.training.engine.launch import find_place

if TYPE_CHECKING:
    from foldserve.training.config import TrainConfig

_MIB = 1024 * 1024
# glibc gives large blocks back to the system as soon as they are freed, and a step gets them again from it,
# page by page. On one thread of a busy CPU that took 5 % of the time of LeNet's steps, and a quarter of those
# of a network with twice its maps.
_BLOCK_BYTES, _KEPT_BYTES = 256 * _MIB, 1024 * _MIB


def prepare_device(config: TrainConfig) -> torch.device:
    """Return the device that ``config`` asks for, and set threads, memory and determinism for this process.

    Raises:
        DeviceError: CUDA was asked for and there is no GPU, or there are more processes than GPUs.
        RunError: a launcher's variables are incomplete or wrong.
    """
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise DeviceError(
            "device cuda was asked for, but torch finds no GPU (is there an NVIDIA driver, and a CUDA build "
            "of torch?); use --device cpu or auto"
        )
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        # cuBLAS is deterministic only if this is set before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    if not has_cuda or config.device == "cpu":
        keep_freed_memory(block_bytes=_BLOCK_BYTES, kept_bytes=_KEPT_BYTES)
        return torch.device("cpu")
    # Each process of a machine uses a GPU of its own; under Slurm it may see no other.
    place = find_place(os.environ)
    index = 0 if place is None else place.local_rank
    if place is not None and place.by_slurm and torch.cuda.device_count() == 1:
        index = 0
    device = torch.device("cuda", index)
    if device.index >= torch.cuda.device_count():
        raise DeviceError(
            f"process {device.index} of this machine finds only {torch.cuda.device_count()} GPUs; "
            "start as many processes, or use --device cpu"
        )
    torch.cuda.set_device(device)
    return device
