"""One epoch of training, and evaluation.

All images live on the device as uint8; a batch is a gather by a slice of the epoch's permutation. Random
numbers depend on the seed and the epoch or step alone, never on what ran before, so that a resumed run needs
no random state to go on exactly as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from training.errors import DivergedError
from training.optimizer import one_cycle_lr, set_learning_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from training.augment import Augmentation
    from training.config import TrainConfig
    from training.datasets import Examples
    from training.ema import WeightAverage
    from training.models import Normalized

# Reading the loss waits for the device: often enough for the display, too seldom to cost anything.
_REPORT_EVERY_STEPS = 20
# Large enough for full speed, small enough for any memory.
_EVALUATION_BATCH = 500


@dataclass
class Trainer:
    """What changes while training, and what that needs; ``model`` maps pixels to logits."""

    model: Normalized
    optimizer: Optimizer
    average: WeightAverage | None
    augmentation: Augmentation
    config: TrainConfig
    steps_per_epoch: int
    step: int = 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])


@dataclass(frozen=True)
class Progress:
    """Means over the epoch so far, of ``step`` steps of ``steps``; accuracy is on augmented images, 0..1."""

    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_s: float
    elapsed_s: float


@dataclass(frozen=True)
class Evaluation:
    """Mean cross entropy, accuracy 0..1, and the predicted classes int64 [N] on the CPU."""

    loss: float
    accuracy: float
    predictions: Tensor


def train_one_epoch(trainer: Trainer, examples: Examples, report: Callable[[Progress], None]) -> Progress:
    """Train for ``trainer.steps_per_epoch`` steps on ``examples``, which are on the model's device.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    config, device = trainer.config, examples.images.device
    generator = torch.Generator(device)
    permutation = _permutation(len(examples), config.seed, trainer.step // trainer.steps_per_epoch).to(device)
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    trainer.model.train()
    started = time.perf_counter()
    for step in range(1, trainer.steps_per_epoch + 1):
        batch = permutation[(step - 1) * config.batch_size : step * config.batch_size]
        loss, logits, labels = _train_step(trainer, examples, batch, generator)
        loss_sum += loss
        correct += (logits.argmax(dim=1) == labels).sum()
        if step % _REPORT_EVERY_STEPS == 0 or step == trainer.steps_per_epoch:
            images = step * config.batch_size
            mean_loss = loss_sum.item() / step
            if not torch.isfinite(loss_sum):
                raise _diverged(trainer, examples.images[batch])
            elapsed_s = time.perf_counter() - started
            progress = Progress(
                step=step,
                steps=trainer.steps_per_epoch,
                loss=mean_loss,
                accuracy=correct.item() / images,
                images_per_s=images / elapsed_s,
                elapsed_s=elapsed_s,
            )
            report(progress)
    return progress


def _train_step(
    trainer: Trainer, examples: Examples, batch: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one optimizer step on the examples at the indices ``batch``; return loss, logits and labels."""
    config = trainer.config
    seed = derived_seed(config.seed, "step", trainer.step)
    generator.manual_seed(seed)
    if config.dropout:
        torch.manual_seed(seed)  # dropout draws from the global generator
    images = trainer.augmentation(examples.images.index_select(0, batch), generator)
    labels = examples.labels.index_select(0, batch)
    lr = one_cycle_lr(trainer.step, total_steps=trainer.total_steps, peak=config.lr, warmup=config.warmup)
    set_learning_rate(trainer.optimizer, lr)
    logits = trainer.model(images)
    loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    trainer.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    trainer.optimizer.step()
    if trainer.average is not None:
        trainer.average.update(trainer.step)
    trainer.step += 1
    return loss.detach(), logits.detach(), labels


@torch.inference_mode()
def evaluate(model: nn.Module, examples: Examples) -> Evaluation:
    """Judge ``model`` (pixels to logits) in eval mode on all of ``examples``; its mode is put back."""
    was_training = model.training
    model.eval()
    logits = torch.cat([model(images) for images in torch.split(examples.images, _EVALUATION_BATCH)]).float()
    model.train(was_training)
    predictions = logits.argmax(dim=1)
    return Evaluation(
        loss=F.cross_entropy(logits, examples.labels).item(),
        accuracy=(predictions == examples.labels).double().mean().item(),
        predictions=predictions.cpu(),
    )


def derived_seed(seed: int, purpose: str, index: int) -> int:
    """Return a seed for one purpose: hashed, because torch's CPU generator takes the low 32 bits alone."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch's images: drawn on the CPU, so the same on every device."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "epoch", epoch))
    return torch.randperm(count, generator=generator)


def _diverged(trainer: Trainer, images: Tensor) -> DivergedError:
    pixels = images.float()
    return DivergedError(
        f"the loss is no longer finite at step {trainer.step} of {trainer.total_steps} (last batch: pixels "
        f"{pixels.min():.0f}..{pixels.max():.0f}, mean {pixels.mean():.1f}); the last good checkpoint is "
        f"kept: lower --lr (now {trainer.config.lr}) and train into another --run-dir"
    )
