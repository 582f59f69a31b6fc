"""The state of a run: built fresh or taken up from ``last.pt``, and turned into checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from training.augment import NO_AUGMENTATION, Augmentation
from training.checkpoint import Checkpoint, load_checkpoint
from training.datasets import channel_statistics
from training.ema import WeightAverage
from training.errors import CheckpointError, RunError
from training.loop import Trainer, derived_seed
from training.models import Normalized, create_model
from training.optimizer import create_optimizer

if TYPE_CHECKING:
    from torch import Tensor

    from training.config import TrainConfig
    from training.datasets import Dataset, Examples
    from training.run_folder import RunFolder


@dataclass
class RunState:
    """A run between epochs: ``facts`` is a checkpoint without weights, ``history`` a record an epoch."""

    trainer: Trainer
    facts: Checkpoint
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def served_model(self) -> Normalized:
        """The model with the weights that would be served: the averaged ones where an average is kept."""
        model, average = self.trainer.model, self.trainer.average
        if average is None:
            return model
        network = create_model(self.facts.arch, **self.facts.arch_args)
        network.load_state_dict(average.weights)
        return Normalized(network, self.facts.mean, self.facts.std).to(model.mean.device)

    def to_checkpoint(self, *, resumable: bool) -> Checkpoint:
        """Return the weights as they are now, with the last record as metrics, on the CPU."""
        average = self.trainer.average
        trainer = {
            "step": self.trainer.step,
            "optimizer": self.trainer.optimizer.state_dict(),
            "history": self.history,
        }
        return replace(
            self.facts,
            metrics=dict(self.history[-1]),
            weights=_to_cpu(self.trainer.model.network.state_dict()),
            ema_weights=None if average is None else _to_cpu(average.weights),
            trainer=trainer if resumable else None,
        )


def start_run(config: TrainConfig, dataset: Dataset, training: Examples, device: torch.device) -> RunState:
    """Return a run at step 0, its weights drawn from ``config.seed``.

    Raises:
        ModelError: the architecture is not known or does not take this data set's images.
        RunError: there are fewer training images than a batch holds.
    """
    steps_per_epoch = len(training) // config.batch_size
    if not steps_per_epoch:
        raise RunError(
            f"batch-size is {config.batch_size}, more than the {len(training)} training images; "
            "give a smaller one"
        )
    mean, std = channel_statistics(training.images)
    facts = Checkpoint(
        arch=config.arch,
        arch_args={
            "in_channels": dataset.image.channels,
            "class_count": len(dataset.labels),
            "height": dataset.image.height,
            "width": dataset.image.width,
            "batch_norm": config.batch_norm,
            "activation": config.activation,
            "dropout": config.dropout,
        },
        image=dataset.image,
        mean=mean,
        std=std,
        labels=dataset.labels,
        dataset=dataset.name,
        metrics={},
        weights={},
    )
    torch.manual_seed(derived_seed(config.seed, "weights", 0))
    network = create_model(facts.arch, **facts.arch_args)
    # Channels last makes pooling 5 times as fast on the CPU, and a whole step of LeNet 1.3 times.
    model = Normalized(network, mean, std).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    augmentation = NO_AUGMENTATION
    if config.augment:
        augmentation = Augmentation(config.crop_padding, dataset.flip_keeps_class, config.erase_probability)
    trainer = Trainer(
        model=model,
        optimizer=create_optimizer(network, config),
        average=WeightAverage(network, config.ema_decay) if config.ema_decay else None,
        augmentation=augmentation,
        config=config,
        steps_per_epoch=steps_per_epoch,
    )
    return RunState(trainer, facts)


def resume_run(state: RunState, folder: RunFolder) -> bool:
    """Take up the run in ``folder`` where it was interrupted; tell whether there was anything to take up.

    Raises:
        RunError: its last checkpoint is damaged, or was made from other data.
    """
    if not folder.last.exists():
        return False
    try:
        checkpoint = load_checkpoint(folder.last)
        _check_same_data(checkpoint, state.facts)
        _restore(state, checkpoint)
    except (CheckpointError, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"the run cannot go on: {reason}; use another --run-dir, or delete the folder"
        ) from error
    return True


def _restore(state: RunState, checkpoint: Checkpoint) -> None:
    if checkpoint.trainer is None:
        raise CheckpointError("its last checkpoint has no state to go on from")
    trainer = state.trainer
    trainer.model.network.load_state_dict(checkpoint.weights)
    trainer.optimizer.load_state_dict(checkpoint.trainer["optimizer"])
    if trainer.average is not None and checkpoint.ema_weights is not None:
        trainer.average.load(checkpoint.ema_weights)
    trainer.step = checkpoint.trainer["step"]
    state.history = checkpoint.trainer["history"]


def _check_same_data(checkpoint: Checkpoint, facts: Checkpoint) -> None:
    for name in ("dataset", "labels", "image", "arch_args", "mean", "std"):
        there, here = getattr(checkpoint, name), getattr(facts, name)
        if there != here:
            raise CheckpointError(f"its checkpoint has {name} {there}, the data set now gives {here}")


def _to_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy, so that a checkpoint keeps its values while training goes on; contiguous, as they were made."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in weights.items()
    }
