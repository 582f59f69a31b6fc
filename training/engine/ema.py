"""Keeps a moving average of the weights, ``average += (1 - decay) * (weights - average)`` after each step.

Batch norm's running statistics are averaged with the weights they belong to. Early averages would be those of
the initial weights, so the decay rises with the step n: ``min(decay, (1 + n) / (10 + n))``.

torch.optim.swa_utils.AveragedModel was tried in its place. It copies the network with deepcopy, which fails
for weights that are computed from others (torch.nn.utils.weight_norm), its update took 8 times as long (0.6
instead of 0.07 ms for LeNet and 1.9 instead of 0.25 ms for resnet, one thread of a busy CPU), and on a GPU it
copies its counter to the device at each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class WeightAverage:
    """Averages a network's parameters and buffers; ``weights`` is a state_dict."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in network.state_dict().items()
        }
        # The network's tensors keep their identity while it trains, so they are looked up once.
        pairs = [(self.weights[name], value) for name, value in network.state_dict().items()]
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]  # num_batches_tracked

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the network's weights after ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        for copy, value in self._copied:
            copy.copy_(value)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Set the average to ``weights``."""
        for name, value in weights.items():
            self.weights[name].copy_(value)
