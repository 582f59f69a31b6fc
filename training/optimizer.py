"""The optimizer and its one-cycle schedule (Smith and Topin 2018).

The learning rate rises linearly to its peak over the first ``warmup`` share of all steps and then falls along
a half cosine to 0. It is a pure function of the step, so a resumed run needs no schedule state.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from training.config import TrainConfig

_MOMENTUM = 0.9


def create_optimizer(network: nn.Module, config: TrainConfig) -> Optimizer:
    """Return the optimizer; weight decay spares biases and batch norm, which have one dimension."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=_MOMENTUM, nesterov=True, fused=True)


def one_cycle_lr(step: int, *, total_steps: int, peak: float, warmup: float) -> float:
    """Return the learning rate of ``step``, counted from 0: above 0 at every step."""
    warmup_steps = round(total_steps * warmup)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
