"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019): two samples in one image, their classes by share.

Each sample has a partner in the batch, the one that a random permutation gives it, and keeps a share of
itself that is drawn from Beta(alpha, alpha):

mixup   image = share * own + (1 - share) * partner's
cutmix  a rectangle of area 1 - share is the partner's; the share is then counted from the pixels

The loss is share * loss(own class) + (1 - share) * loss(partner's class).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Mixed:
    """Images [N, C, H, W] of two samples each: their own, by ``shares`` [N], and ``partners`` int64 [N]."""

    images: Tensor
    partners: Tensor
    shares: Tensor


@dataclass(frozen=True)
class Mixing:
    """Alpha of each way to mix, 0 for never; with both, each batch goes one way or the other by chance."""

    mixup_alpha: float
    cutmix_alpha: float

    def __bool__(self) -> bool:
        return bool(self.mixup_alpha or self.cutmix_alpha)

    def __call__(self, images: Tensor, generator: Generator) -> Mixed:
        """Return ``images`` [N, C, H, W] mixed, as float32 after mixup and of the same type after cutmix."""
        is_mixup = not self.cutmix_alpha
        if self.mixup_alpha and self.cutmix_alpha:
            # Drawn on the device, read on the CPU: one small wait a step, only where both are asked for.
            is_mixup = bool(torch.rand((), generator=generator, device=images.device) < 0.5)
        if is_mixup:
            return mixup(images, self.mixup_alpha, generator)
        return cutmix(images, self.cutmix_alpha, generator)


NO_MIXING = Mixing(mixup_alpha=0.0, cutmix_alpha=0.0)


def mixup(images: Tensor, alpha: float, generator: Generator) -> Mixed:
    """Blend each image with another one of the batch."""
    partners, shares = _partners(images, generator), _shares(images, alpha, generator)
    own = images.float()
    return Mixed(torch.lerp(own[partners], own, shares[:, None, None, None]), partners, shares)


def cutmix(images: Tensor, alpha: float, generator: Generator) -> Mixed:
    """Replace a rectangle of each image, of its own aspect, by the same place of another one of the batch."""
    count, _, height, width = images.shape
    partners, shares = _partners(images, generator), _shares(images, alpha, generator)
    centre_y, centre_x = torch.rand(2, count, 1, generator=generator, device=images.device)
    half = (1 - shares).sqrt()[:, None] / 2
    row = (torch.arange(height, device=images.device) + 0.5) / height
    column = (torch.arange(width, device=images.device) + 0.5) / width
    in_rows, in_columns = (row - centre_y).abs() < half, (column - centre_x).abs() < half  # [N, H], [N, W]
    replaced = in_rows[:, :, None] & in_columns[:, None, :]
    # The rectangle may reach over the border: what counts is how many pixels it really replaces.
    kept = 1 - replaced.float().mean(dim=(1, 2))
    return Mixed(torch.where(replaced[:, None], images[partners], images), partners, kept)


def _partners(images: Tensor, generator: Generator) -> Tensor:
    return torch.randperm(len(images), generator=generator, device=images.device)


def _shares(images: Tensor, alpha: float, generator: Generator) -> Tensor:
    """Return Beta(alpha, alpha) draws [N]: one of two proportions that a Dirichlet distribution gives."""
    concentration = torch.full((len(images), 2), alpha, device=images.device)
    return torch._sample_dirichlet(concentration, generator=generator)[:, 0]
