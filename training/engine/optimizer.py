"""The optimizer and the schedules of its learning rate and momentum.

Both schedules are pure functions of the step, so a resumed run needs no state of theirs. With s steps in all,
of which w warm up, and p the peak:

cosine     p (n + 1) / (w + 1) for n < w, then p (1 + cos(pi (n - w) / (s - w))) / 2; momentum stays
one-cycle  (Smith and Topin 2018) half cosines from p / 25 up to p and down to 0; momentum goes from 0.95 down
           to 0.85 at the peak and up again
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from foldserve.training.config import TrainConfig

_MOMENTUM = 0.9
_CYCLED_MOMENTUM = (0.95, 0.85)
_START_DIVISOR = 25


@dataclass(frozen=True)
class Pace:
    """What the optimizer takes at one step; for AdamW ``momentum`` is its first beta."""

    lr: float
    momentum: float


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


def pace_at(step: int, *, total_steps: int, config: TrainConfig) -> Pace:
    """Return learning rate, above 0 at every step, and momentum of ``step``, counted from 0."""
    warmup_steps = round(total_steps * config.warmup)
    if step < warmup_steps:
        if config.schedule == "cosine":
            return Pace(config.lr * (step + 1) / (warmup_steps + 1), _MOMENTUM)
        return _cycled(_half_cosine(step / warmup_steps), config.lr, config.lr / _START_DIVISOR)
    fallen = _half_cosine((step - warmup_steps) / (total_steps - warmup_steps))
    if config.schedule == "cosine":
        return Pace(config.lr * (1 - fallen), _MOMENTUM)
    return _cycled(1 - fallen, config.lr, 0.0)


def set_pace(optimizer: Optimizer, pace: Pace) -> None:
    """Set learning rate and momentum of every group."""
    for group in optimizer.param_groups:
        group["lr"] = pace.lr
        if "momentum" in group:
            group["momentum"] = pace.momentum
        else:
            group["betas"] = (pace.momentum, group["betas"][1])


def _half_cosine(share: float) -> float:
    """Rise smoothly from 0 to 1 as ``share`` does."""
    return 0.5 * (1 - math.cos(math.pi * share))


def _cycled(height: float, peak: float, foot: float) -> Pace:
    """Return the pace at ``height`` of the cycle, 0 at its foot and 1 at its peak."""
    high, low = _CYCLED_MOMENTUM
    return Pace(foot + (peak - foot) * height, high + (low - high) * height)
