"""Leaves easy images out of each epoch: InfoBatch (Qin et al. 2024, arxiv.org/abs/2303.04947).

Of the images with the lowest losses, twice as many as are to be left out, a random half is left out and the
other half counts double: on average, the gradient stays that of all images, and an epoch takes fewer steps.
In the first epoch, when no loss is known yet, and in the last eighth of the epochs, any images are left out,
and all count the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# Where the paper stops pruning by loss: at the end, each image should count once.
_END = 7 / 8


def kept_count(image_count: int, share: float) -> int:
    """Return how many of ``image_count`` images an epoch takes that leaves out ``share`` of them."""
    return image_count - int(share * image_count)


@dataclass
class Pruning:
    """Knows the losses of N images, and which of them an epoch takes.

    Attributes:
        left_out: number of images that each epoch leaves out, at most half of them.
        before: float32 [N], each image's last loss before the epoch began; infinite if there is none.
        latest: float32 [N], each image's last loss.
    """

    left_out: int
    before: Tensor
    latest: Tensor

    @classmethod
    def of(cls, share: float, image_count: int, device: torch.device) -> Pruning:
        """Return a pruning that leaves out ``share`` of ``image_count`` images, and has seen no loss."""
        unknown = torch.full((image_count,), float("inf"), device=device)
        return cls(image_count - kept_count(image_count, share), unknown, unknown.clone())

    @property
    def image_count(self) -> int:
        """Number of images that an epoch takes."""
        return len(self.before) - self.left_out

    def start_epoch(self) -> None:
        """Choose by the losses of now, until this is called again."""
        self.before.copy_(self.latest)

    def choose(self, order: Tensor, done: float) -> tuple[Tensor, Tensor]:
        """Choose the images of an epoch.

        Args:
            order: all images in random order, int64 [N], on the CPU.
            done: fraction of the run's epochs that are over.

        Returns:
            The images in their order, int64 [image_count], and the weights of all in the loss, float32 [N];
            those of the images chosen are 1 in the mean.
        """
        weights = torch.ones_like(self.before)
        if done >= _END or not bool(self.before.isfinite().any()):
            return order[: self.image_count], weights
        losses = self.before.cpu()
        easy = torch.zeros(len(losses), dtype=torch.bool)
        easy[losses.argsort(stable=True)[: 2 * self.left_out]] = True
        in_order = easy[order]
        # The easy ones that come last.
        stays = ~in_order | (in_order.cumsum(0) <= self.left_out)
        weights[easy.to(weights.device)] = 2.0
        return order[stays], weights * (self.image_count / len(losses))

    def record(self, images: Tensor, losses: Tensor) -> None:
        """Note the ``losses`` float32 [B] of the images at the indices ``images`` int64 [B]."""
        self.latest[images.to(self.latest.device)] = losses

    def describe(self, steps: int) -> str:
        """Return the size of an epoch, for the user."""
        return (
            f"an epoch is {self.image_count:,} of {len(self.before):,} images, in {steps:,} steps: half of "
            f"the {2 * self.left_out:,} with the lowest losses are left out, and the others of these count "
            "double"
        )

    def state(self) -> dict[str, Tensor]:
        """Return the losses, on the CPU."""
        return {"before": self.before.cpu(), "latest": self.latest.cpu()}
