"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019): blend two samples and their targets.

A random permutation gives each sample i of a batch a partner j, and lam is drawn from Beta(alpha, alpha).
With one-hot targets y:

mixup   x = lam x_i + (1 - lam) x_j and y = lam y_i + (1 - lam) y_j
cutmix  x is x_i with a rectangle of area 1 - lam from x_j; y as for mixup, with lam the share of pixels kept
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Mixing:
    """Mixes batches; ``mixup_alpha`` and ``cutmix_alpha`` are 0 for never.

    If both are above 0, each batch is mixed one way or the other with equal probability.
    """

    mixup_alpha: float
    cutmix_alpha: float
    class_count: int

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return images [N, C, H, W] and the targets of their loss, given class indices ``labels`` int64 [N].

        Targets are probabilities float32 [N, class_count] if the images are mixed, else ``labels``. Mixup
        returns float32 images; cutmix keeps their type.
        """
        if not (self.mixup_alpha or self.cutmix_alpha):
            return images, labels
        targets = F.one_hot(labels, self.class_count).float()
        is_mixup = not self.cutmix_alpha
        if self.mixup_alpha and self.cutmix_alpha:
            # Drawn on the device, read on the CPU: one small wait per step, only if both are asked for.
            is_mixup = bool(torch.rand((), generator=generator, device=images.device) < 0.5)
        if is_mixup:
            return mixup(images, targets, self.mixup_alpha, generator)
        return cutmix(images, targets, self.cutmix_alpha, generator)


def mixup(images: Tensor, targets: Tensor, alpha: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Blend each image, and its targets [N, K], with those of another sample of the batch."""
    partner, lam = _draw(images, alpha, generator)
    pixels = images.float()
    mixed = torch.lerp(pixels[partner], pixels, lam[:, None, None, None])
    return mixed, torch.lerp(targets[partner], targets, lam[:, None])


def cutmix(images: Tensor, targets: Tensor, alpha: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each image by the same place of another one; blend the targets [N, K] by area.

    The rectangle has the aspect of the image.
    """
    count, _, height, width = images.shape
    partner, lam = _draw(images, alpha, generator)
    centre_y, centre_x = torch.rand(2, count, 1, generator=generator, device=images.device)
    half = (1 - lam).sqrt()[:, None] / 2
    row = (torch.arange(height, device=images.device) + 0.5) / height
    column = (torch.arange(width, device=images.device) + 0.5) / width
    in_rows, in_columns = (row - centre_y).abs() < half, (column - centre_x).abs() < half  # [N, H], [N, W]
    replaced = in_rows[:, :, None] & in_columns[:, None, :]
    # The rectangle may reach over the border, so lam is counted from the pixels that it replaces.
    lam = 1 - replaced.float().mean(dim=(1, 2))
    mixed = torch.where(replaced[:, None], images[partner], images)
    return mixed, torch.lerp(targets[partner], targets, lam[:, None])


def _draw(images: Tensor, alpha: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return each image's partner, as indices int64 [N], and ``lam`` float32 [N] from Beta(alpha, alpha)."""
    partner = torch.randperm(len(images), generator=generator, device=images.device)
    # A Beta distribution is a Dirichlet distribution of two proportions.
    concentration = torch.full((len(images), 2), alpha, device=images.device)
    return partner, torch._sample_dirichlet(concentration, generator=generator)[:, 0]
