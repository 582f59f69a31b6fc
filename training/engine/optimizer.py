"""Creates the optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foldserve.training.engine.schedule import MOMENTUM

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from foldserve.training.config import TrainConfig


def create_optimizer(network: nn.Module, config: TrainConfig) -> Optimizer:
    """Return the optimizer of ``network``; biases and batch norm, of one dimension, get no weight decay."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, nesterov=True, fused=True)
