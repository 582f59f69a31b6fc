"""Schedules of the learning rate and the momentum.

They are pure functions of the step, so a resumed run restores no state of theirs. With s steps in all, of
which w warm up, and the peak p:

cosine     p (n + 1) / (w + 1) for n < w, then p (1 + cos(pi (n - w) / (s - w))) / 2; constant momentum
one-cycle  (Smith and Topin 2018) half cosines from p / 25 up to p and down to 0; momentum falls from 0.95 to
           0.85 at the peak and rises again
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from foldserve.training.config import TrainConfig

MOMENTUM = 0.9
_CYCLED_MOMENTUM = (0.95, 0.85)
_START_DIVISOR = 25


@dataclass(frozen=True)
class Schedule:
    """Learning rate and momentum of each step of a run of ``total_steps``; steps count from 0."""

    config: TrainConfig
    total_steps: int

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of ``step``, which is above 0."""
        peak = self.config.lr
        if step >= self.warmup_steps:
            return peak * (1 - self._fallen_at(step))
        if self.config.schedule == "cosine":
            return peak * (step + 1) / (self.warmup_steps + 1)
        start = peak / _START_DIVISOR
        return start + (peak - start) * _half_cosine(step / self.warmup_steps)

    def momentum_at(self, step: int) -> float:
        """Return the momentum of ``step``; for AdamW it is the first beta."""
        if self.config.schedule == "cosine":
            return MOMENTUM
        is_rising = step < self.warmup_steps
        height = _half_cosine(step / self.warmup_steps) if is_rising else 1 - self._fallen_at(step)
        high, low = _CYCLED_MOMENTUM
        return high + (low - high) * height

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Set the learning rate and the momentum of every group of ``optimizer`` to those of ``step``.

        A group with an ``lr_scale`` gets that fraction of the rate.
        """
        momentum = self.momentum_at(step)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate_at(step) * group.get("lr_scale", 1.0)
            if "momentum" in group:
                group["momentum"] = momentum
            else:
                group["betas"] = (momentum, group["betas"][1])

    @property
    def warmup_steps(self) -> int:
        """Number of steps in which the learning rate rises."""
        return round(self.total_steps * self.config.warmup)

    def _fallen_at(self, step: int) -> float:
        """Return how far the rate has fallen from its peak: 0 at the peak, 1 after the last step."""
        return _half_cosine((step - self.warmup_steps) / (self.total_steps - self.warmup_steps))


def _half_cosine(share: float) -> float:
    """Rise smoothly from 0 to 1 as ``share`` does."""
    return 0.5 * (1 - math.cos(math.pi * share))
