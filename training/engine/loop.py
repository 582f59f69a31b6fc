"""Trains one epoch.

All images are in memory as uint8; a batch is a gather by a slice of the epoch's permutation. Random numbers
depend only on the seed and on the epoch or step, not on earlier draws. A run resumed at any step thus needs
no saved random state to continue exactly as an uninterrupted one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from foldserve.training.engine.distributed import SINGLE_PROCESS, ProcessGroup
from foldserve.training.engine.freezing import Frozen
from foldserve.training.engine.random_seeds import derived_seed
from foldserve.training.engine.schedule import Schedule
from foldserve.training.errors import DivergedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.optim import Optimizer

    from foldserve.training.augmentation.augment import Augmentation
    from foldserve.training.augmentation.mixing import Mixing
    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Examples
    from foldserve.training.engine.ema import WeightAverage
    from foldserve.training.engine.precision import Precision
    from foldserve.training.engine.pruning import Pruning
    from foldserve.training.engine.sampling import Sampler
    from foldserve.training.engine.time_budget import TimeBudget
    from foldserve.training.models import Normalized

# Reading the loss waits for the device: often enough for the display, and too rarely to slow training.
_REPORT_EVERY_STEPS = 20
# A time limit is planned at every report, and at these steps of the start, when the schedule is a guess.
_FIRST_PLANS = (3, 10)


@dataclass
class EpochTotals:
    """Counts of the current epoch in this process; saved in checkpoints, so that a resumed epoch keeps them.

    ``losses`` is float32, one per step of the epoch; ``correct`` and ``seen`` count images of the epoch.
    """

    losses: Tensor
    correct: Tensor
    seen: int = 0
    elapsed_s: float = 0.0


@dataclass
class Trainer:
    """State of training and all that a step needs; ``model`` maps pixels to logits.

    ``forward`` calls ``model``: compiled, or wrapped so that gradients are averaged over ``process_group``.
    ``class_weights`` is float32 [K] or None; with ``pruning``, epochs take a part of the images;
    ``planned_steps`` is where a time limit ends the run.
    """

    model: Normalized
    forward: Callable[[Tensor], Tensor]
    optimizer: Optimizer
    average: WeightAverage | None
    augmentation: Augmentation
    mixing: Mixing
    precision: Precision
    config: TrainConfig
    sampler: Sampler
    class_weights: Tensor | None = None
    pruning: Pruning | None = None
    frozen: Frozen = field(default_factory=Frozen)
    process_group: ProcessGroup = SINGLE_PROCESS
    budget: TimeBudget | None = None
    planned_steps: int | None = None
    step: int = 0
    totals: EpochTotals | None = None

    def __post_init__(self) -> None:
        if self.pruning is None:
            self.steps_per_epoch = self.sampler.steps
        else:
            self.steps_per_epoch = self.pruning.image_count // self.config.batch_size

    def images_of(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Return the images of ``epoch`` in their order, int64 on the CPU, and if only some, their weights.

        Weights are float32 [N], of all images.
        """
        order = self.sampler.order(epoch)
        return (
            (order, None) if self.pruning is None else self.pruning.choose(order, epoch / self.config.epochs)
        )

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        most = self.steps_per_epoch * self.config.epochs
        return most if self.planned_steps is None else min(most, self.planned_steps)

    @property
    def is_augmenting(self) -> bool:
        """Whether the next step augments and mixes its images."""
        return self.step < self.config.augment_until * self.total_steps

    @property
    def is_too_short_for_policy(self) -> bool:
        """Whether the run takes too few steps for the policy of its augmentation, which then is not used."""
        return self.augmentation.policy is not None and self.total_steps < self.config.auto_augment_steps

    def plan(self) -> None:
        """Adapt the number of steps to the time that is left, if there is a limit; all processes call it."""
        if self.budget is None:
            return
        most = self.steps_per_epoch * self.config.epochs
        planned = (
            self.budget.plan(self.step, self.steps_per_epoch, self.config.batch_size, most)
            if self.process_group.is_main_process
            else 0
        )
        self.planned_steps = self.process_group.broadcast(planned)

    def start_training_mode(self) -> None:
        """Put the model into training mode, except for frozen batch norm."""
        self.model.train()
        self.frozen.keep_in_evaluation()

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])


@dataclass(frozen=True)
class Progress:
    """Means over ``step`` of the epoch's ``steps``; accuracy is that of augmented images, 0..1."""

    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_s: float
    elapsed_s: float


def train_one_epoch(
    trainer: Trainer,
    examples: Examples,
    report: Callable[[Progress], None],
    after_step: Callable[[], None] = lambda: None,
) -> Progress:
    """Train on ``examples`` to the end of the epoch that ``trainer.step`` is in.

    Calls ``report`` every few steps and at the end, and ``after_step`` after each step but the last. At both
    times, ``trainer`` has all the state from which training can resume.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    config, device = trainer.config, trainer.model.mean.device
    generator = torch.Generator(device)
    epoch, steps_done = divmod(trainer.step, trainer.steps_per_epoch)
    if steps_done == 0 or trainer.totals is None:
        trainer.totals = empty_totals(trainer)
        if trainer.pruning is not None:
            trainer.pruning.start_epoch()
    order, image_weights = trainer.images_of(epoch)
    permutation = order.to(examples.images.device)
    totals = trainer.totals
    trainer.start_training_mode()
    started = time.perf_counter() - totals.elapsed_s
    for step in range(steps_done, trainer.steps_per_epoch):
        batch = trainer.process_group.shard(
            permutation[step * config.batch_size : (step + 1) * config.batch_size]
        )
        loss, correct = _train_step(trainer, examples, batch, image_weights, generator)
        totals.losses[step] = loss
        totals.correct += correct
        totals.seen += len(batch)
        totals.elapsed_s = time.perf_counter() - started
        is_report = (step + 1) % _REPORT_EVERY_STEPS == 0
        if is_report or trainer.step in _FIRST_PLANS:
            trainer.plan()
        is_last = step + 1 == trainer.steps_per_epoch or trainer.step >= trainer.total_steps
        if is_report or is_last:
            check_finite(trainer, examples)
            report(_progress(trainer, step + 1))
        if is_last:
            break
        after_step()
    return _progress(trainer, step + 1, over_all=True)


def _train_step(
    trainer: Trainer,
    examples: Examples,
    batch: Tensor,
    image_weights: Tensor | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Take one optimizer step on the examples at the indices ``batch``; return loss and number correct."""
    config, scaler = trainer.config, trainer.precision.scaler
    Schedule(config, trainer.total_steps).apply(trainer.optimizer, trainer.step)
    images, labels = _gathered(trainer, examples, batch, generator)
    targets = labels
    if trainer.is_augmenting:
        augmentation = trainer.augmentation
        if trainer.is_too_short_for_policy:
            augmentation = augmentation.without_policy()
        images = augmentation(images, generator)
        images, targets = trainer.mixing(images, labels, generator)
    trainer.optimizer.zero_grad()
    weights = None if image_weights is None else image_weights[batch.to(image_weights.device)]
    all_losses = []
    loss_sum = torch.zeros((), device=images.device)
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    for part in torch.arange(len(batch)).tensor_split(config.accumulate):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        with trainer.precision.computing():
            logits = trainer.forward(images[rows]).float()
        losses = F.cross_entropy(
            logits,
            targets[rows],
            weight=trainer.class_weights,
            label_smoothing=config.label_smoothing,
            reduction="none",
        )
        if weights is not None:
            all_losses.append(losses.detach())
            losses = losses * weights[rows]
        mean_loss = losses.sum() / len(batch)
        scaler.scale(mean_loss).backward()  # type: ignore[no-untyped-call]  # torch's own
        loss_sum = loss_sum + mean_loss.detach()
        correct = correct + (logits.detach().argmax(dim=1) == labels[rows]).sum()
    if config.clip_norm:
        scaler.unscale_(trainer.optimizer)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), config.clip_norm, foreach=True)
    scaler.step(trainer.optimizer)
    scaler.update()
    if trainer.average is not None:
        trainer.average.update(trainer.step)
    if trainer.pruning is not None:
        exchange = partial(trainer.process_group.gather, total=config.batch_size)
        trainer.pruning.record(exchange(batch.to(images.device)), exchange(torch.cat(all_losses)))
    trainer.step += 1
    return loss_sum, correct


def _gathered(
    trainer: Trainer, examples: Examples, batch: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return images and labels at the indices ``batch``, on the device, after seeding for augmentation."""
    rank = trainer.process_group.rank
    purpose = f"step of process {rank}" if rank else "step"
    seed = derived_seed(trainer.config.seed, purpose, trainer.step)
    generator.manual_seed(seed)
    torch.manual_seed(seed)  # dropout uses the global generator
    device = trainer.model.mean.device
    images = examples.images.index_select(0, batch).to(device, non_blocking=True)
    labels = examples.labels.index_select(0, batch).to(device, non_blocking=True)
    return images, labels


def empty_totals(trainer: Trainer) -> EpochTotals:
    """Return the totals of an epoch that has not begun."""
    device = trainer.model.mean.device
    return EpochTotals(
        losses=torch.zeros(trainer.steps_per_epoch, device=device),
        correct=torch.zeros((), dtype=torch.int64, device=device),
    )


def check_finite(trainer: Trainer, examples: Examples) -> None:
    """Check that the epoch's losses and the weights are finite, as those of a checkpoint must be.

    Raises:
        DivergedError: one is infinite or NaN; describes the first such step and its batch.
    """
    totals, config = trainer.totals, trainer.config
    assert totals is not None
    bad = torch.nonzero(~totals.losses.isfinite())
    # A sum is finite only if all its terms are, and takes a tenth of the time of checking each of them.
    if len(bad) == 0 and all(bool(value.sum().isfinite()) for value in trainer.model.parameters()):
        return
    epoch, steps_done = divmod(trainer.step - 1, trainer.steps_per_epoch)
    step = int(bad[0]) if len(bad) else steps_done
    order = trainer.images_of(epoch)[0][step * config.batch_size :][: config.batch_size]
    pixels = examples.images[order.to(examples.images.device)].float()
    before = f"{totals.losses[step - 1]:.4g} a step before" if step else "the epoch's first"
    raise DivergedError(
        f"the {'loss is' if len(bad) else 'weights are'} no longer finite at step "
        f"{epoch * trainer.steps_per_epoch + step + 1} of {trainer.total_steps} "
        f"(loss {totals.losses[step]:.4g}, {before}; its batch: pixels {pixels.min():.0f}.."
        f"{pixels.max():.0f}, mean {pixels.mean():.1f}, deviation {pixels.std():.1f}); the last good "
        f"checkpoint is kept: lower --lr (now {config.lr:g}) or give --clip-norm, and use another --run-dir"
    )


def _progress(trainer: Trainer, steps: int, *, over_all: bool = False) -> Progress:
    """Return means of ``steps`` steps in this process, or ``over_all`` processes (then all must call it)."""
    totals = trainer.totals
    assert totals is not None
    process_group = trainer.process_group if over_all else SINGLE_PROCESS
    loss = process_group.sum(totals.losses[:steps].mean()) / process_group.world_size
    counts = process_group.sum(
        torch.stack([totals.correct, torch.full_like(totals.correct, totals.seen)])
    ).tolist()
    return Progress(
        step=steps,
        steps=trainer.steps_per_epoch,
        loss=loss.item(),
        accuracy=counts[0] / counts[1],
        images_per_s=steps * trainer.config.batch_size / totals.elapsed_s,
        elapsed_s=totals.elapsed_s,
    )
