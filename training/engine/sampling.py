"""Orders the images of an epoch, each order a pure function of seed and epoch.

shuffled  each image once; the incomplete batch at the end is dropped, other images in each epoch
balanced  each class equally often: the images of rarer classes come again. Each image comes at least once,
          and as often as any other of its class, or once more. The epoch ends with a whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from foldserve.training.engine.random_seeds import derived_seed

if TYPE_CHECKING:
    from torch import Tensor

    from foldserve.training.config import TrainConfig


@dataclass(frozen=True)
class Sampler:
    """Orders images with class indices ``labels`` int64 [N] in batches of ``batch_size``."""

    labels: Tensor
    batch_size: int
    seed: int
    is_balanced: bool = False

    @classmethod
    def of(cls, config: TrainConfig, labels: Tensor) -> Sampler:
        """Return the sampler that ``config`` asks for."""
        return cls(labels.cpu(), config.batch_size, config.seed, config.sampler == "balanced")

    @property
    def steps(self) -> int:
        """Number of batches of an epoch."""
        if not self.is_balanced:
            return len(self.labels) // self.batch_size
        counts = self._class_counts()
        return -(-int(counts.max()) * int((counts > 0).sum()) // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """Return image indices int64 [steps * batch_size or more], drawn on the CPU to suit every device."""
        if not self.is_balanced:
            return epoch_order(len(self.labels), self.seed, epoch)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "epoch", epoch))
        counts = self._class_counts()
        classes = torch.nonzero(counts).flatten()
        each, more = divmod(self.steps * self.batch_size, len(classes))
        # Which classes get one image more than the others changes with the epoch.
        lucky = torch.randperm(len(classes), generator=generator) < more
        chosen = []
        for label, extra in zip(classes.tolist(), lucky.tolist(), strict=True):
            images = torch.nonzero(self.labels == label).flatten()
            rounds, rest = divmod(each + extra, len(images))
            again = torch.randperm(len(images), generator=generator)[:rest]
            chosen += [images.repeat(rounds), images[again]]
        drawn = torch.cat(chosen)
        return drawn[torch.randperm(len(drawn), generator=generator)]

    def describe(self) -> str | None:
        """Return what an epoch of a balanced sampler is, for the user; None for a shuffled one."""
        if not self.is_balanced:
            return None
        counts = self._class_counts()
        present = counts[counts > 0]
        each = self.steps * self.batch_size // len(present)
        return (
            f"an epoch is {self.steps * self.batch_size:,} images in {self.steps:,} steps: each class about "
            f"{each:,} times, every image at least once, those of the rarest class at least "
            f"{each // int(present.min()):,} times"
        )

    def _class_counts(self) -> Tensor:
        return torch.bincount(self.labels)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch's images, drawn on the CPU so that it is the same for every device."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "epoch", epoch))
    return torch.randperm(count, generator=generator)
