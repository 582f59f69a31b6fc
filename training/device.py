"""Where and how torch computes in this process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from training.errors import DeviceError

if TYPE_CHECKING:
    from training.config import TrainConfig


def prepare_device(config: TrainConfig) -> torch.device:
    """Return the device of ``config`` and set threads and determinism for this process.

    Raises:
        DeviceError: CUDA was asked for and is not there.
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
        # cuBLAS is deterministic only with this, set before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    return torch.device("cuda" if has_cuda and config.device != "cpu" else "cpu")
