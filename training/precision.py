"""The number format of the heavy layers while training; weights, losses and every evaluation are float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.amp import GradScaler, autocast

from training.errors import DeviceError

if TYPE_CHECKING:
    from training.config import TrainConfig


@dataclass(frozen=True)
class Precision:
    """How to compute a forward pass; ``scaler`` is active for fp16 alone, whose gradients would vanish."""

    name: str
    device_type: str
    dtype: torch.dtype | None
    scaler: GradScaler

    def computing(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass."""
        if self.dtype is None:
            return nullcontext()
        return autocast(self.device_type, dtype=self.dtype)


def choose_precision(config: TrainConfig, device: torch.device) -> Precision:
    """Return the precision of ``config`` on ``device``.

    Raises:
        DeviceError: fp16 was asked for without a GPU.
    """
    name = config.precision
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise DeviceError("precision fp16 needs a GPU; use --precision bf16 or fp32 on a CPU")
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return Precision(name, device.type, dtype, GradScaler(device.type, enabled=name == "fp16"))
