"""Creates the optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foldserve.training.engine.schedule import MOMENTUM

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from foldserve.training.config import TrainConfig


def create_optimizer(
    network: nn.Module, config: TrainConfig, initial: frozenset[str] = frozenset()
) -> Optimizer:
    """Return the optimizer of ``network``; biases and batch norm, of one dimension, get no weight decay.

    The parameters named in ``initial``, which the run did not draw itself, get ``config.backbone_lr_scale``
    times the learning rate.
    """
    trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    scale = config.backbone_lr_scale
    new = [value for name, value in trained if scale == 1 or name not in initial]
    groups = _groups(new, config)
    if len(new) < len(trained):
        taken = [value for name, value in trained if name in initial]
        groups += [group | {"lr_scale": scale} for group in _groups(taken, config)]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, nesterov=True, fused=True)


def _groups(parameters: list[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
