"""Wraps a network with the normalisation of its input, so that the served model takes pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from foldserve.training.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Normalized(nn.Module):
    """Computes ``network((pixel / 255 - mean) / std)``, with a ``mean`` and ``std`` per channel (buffers)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wrap ``network``.

        Raises:
            ModelError: ``mean`` and ``std`` differ in length, or a ``std`` is not above 0.
        """
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ModelError(
                f"mean {tuple(mean)} and std {tuple(std)}: expected one of each per channel, std above 0"
            )
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [N, K] of ``pixels`` [N, C, H, W], uint8 or float, from 0 to 255."""
        logits: Tensor = self.network((pixels.to(self.mean.dtype) / 255 - self.mean) / self.std)
        return logits
