"""Lists what a person would try by hand: a grid of rate, steps and augmentation, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The usual one for data sets of this size. All else is as the rule has it.
BATCH_SIZE = 32


@dataclass(frozen=True)
class Trial:
    """Settings of one training by hand."""

    lr: float
    steps: int
    augmentation: Literal["none", "crop", "trivial"]

    @property
    def name(self) -> str:
        """What the trial is called in rows and folders."""
        return f"lr{self.lr:g}-{self.steps}-{self.augmentation}"

    def flags(self, train_count: int) -> list[str]:
        """Return the flags of `foldserve train` for ``train_count`` training images."""
        batch_size = min(BATCH_SIZE, max(2, train_count // 2))
        epochs = max(1, round(self.steps / max(1, train_count // batch_size)))
        words = [f"--lr={self.lr:g}", f"--batch-size={batch_size}", f"--epochs={epochs}"]
        if self.augmentation == "none":
            return [*words, "--no-augment"]
        return [*words, f"--auto-augment={'trivial' if self.augmentation == 'trivial' else 'none'}"]


TRIED = (
    Trial(0.03, 2000, "crop"),
    Trial(0.1, 2000, "crop"),
    Trial(0.01, 2000, "crop"),
    Trial(0.03, 4000, "crop"),
    Trial(0.01, 4000, "crop"),
    Trial(0.03, 2000, "none"),
    Trial(0.03, 4000, "trivial"),
    Trial(0.1, 4000, "crop"),
    Trial(0.01, 2000, "trivial"),
    Trial(0.03, 1000, "crop"),
)
