"""Creates the state of a run, and converts it to checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from foldserve.training.checkpoint import Checkpoint
from foldserve.training.datasets import channel_statistics
from foldserve.training.engine.class_weights import class_weights
from foldserve.training.engine.distributed import SINGLE_PROCESS, ProcessGroup
from foldserve.training.engine.ema import WeightAverage
from foldserve.training.engine.freezing import freeze
from foldserve.training.engine.loop import Trainer
from foldserve.training.engine.network import build_model, network_arguments, training_forward
from foldserve.training.engine.optimizer import create_optimizer
from foldserve.training.engine.precision import choose_precision
from foldserve.training.engine.pruning import Pruning, kept_count
from foldserve.training.engine.random_seeds import derived_seed
from foldserve.training.engine.sampling import Sampler
from foldserve.training.engine.schedule import Schedule
from foldserve.training.errors import CheckpointError, RunError
from foldserve.training.models import Normalized, create_model
from foldserve.training.run.chosen_augmentation import chosen_augmentation, chosen_mixing
from foldserve.training.run.initial_weights import fit_lines, fit_weights, load_fit, without_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset, Examples
    from foldserve.training.run.initial_weights import InitialWeights


# The figures of each finished epoch, for curves, report and the choice of the best epoch.
HISTORY_FIELDS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "images_per_s",
    "train_s",
)


@dataclass
class RunState:
    """A run at any step; ``facts`` is a checkpoint without weights, ``history`` has a record per epoch.

    ``initial`` names the parameters that were taken from --init.
    """

    trainer: Trainer
    facts: Checkpoint
    history: list[dict[str, Any]] = field(default_factory=list)
    initial: frozenset[str] = frozenset()

    @property
    def selected_by(self) -> str:
        """The name of the figure in the history that the best epoch is chosen by."""
        return f"validation_{self.trainer.config.select.replace('-', '_')}"

    @property
    def epochs_without_gain(self) -> int:
        """Number of epochs after the warm-up since the last one that was better than all before it."""
        if not self.history:
            return 0
        figures = [record[self.selected_by] for record in self.history]
        warmup = Schedule(self.trainer.config, self.trainer.total_steps).warmup_steps
        return sum(record["step"] > warmup for record in self.history[figures.index(max(figures)) + 1 :])

    @property
    def is_out_of_patience(self) -> bool:
        """Whether there were as many epochs without a better one as --patience allows."""
        patience = self.trainer.config.patience
        return patience is not None and self.epochs_without_gain >= patience

    @property
    def is_over(self) -> bool:
        """Whether the last epoch is done, the time is up, or patience is."""
        trainer = self.trainer
        return (
            len(self.history) >= trainer.config.epochs
            or trainer.step >= trainer.total_steps
            or self.is_out_of_patience
        )

    @property
    def served_model(self) -> Normalized:
        """The model with the weights that would be served: the averaged ones if an average is kept."""
        model, average = self.trainer.model, self.trainer.average
        if average is None:
            return model
        network = create_model(self.facts.arch, **self.facts.arch_args)
        network.load_state_dict(average.weights)
        return Normalized(network, self.facts.mean, self.facts.std).to(model.mean.device)

    def to_checkpoint(self, *, resumable: bool) -> Checkpoint:
        """Return a checkpoint of the current weights, on the CPU, with the last record as metrics."""
        average = self.trainer.average
        return replace(
            self.facts,
            metrics=dict(self.history[-1]) if self.history else {},
            weights=_to_cpu(self.trainer.model.network.state_dict()),
            ema_weights=None if average is None else _to_cpu(average.weights),
            trainer=self._trainer_state() if resumable else None,
        )

    def _trainer_state(self) -> dict[str, Any]:
        trainer = self.trainer
        # Only what is in use, so that earlier versions can read the others' checkpoints.
        more: dict[str, Any] = {}
        if self.initial:
            more["initial"] = sorted(self.initial)
        if trainer.class_weights is not None:
            more["class_weights"] = trainer.class_weights.cpu()
        if trainer.pruning is not None:
            more["pruning"] = trainer.pruning.state()
        if trainer.budget is not None:
            more |= {"spent_s": trainer.budget.total_spent_s(), "planned_steps": trainer.planned_steps}
        return more | {
            "step": trainer.step,
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.precision.scaler.state_dict(),
            "totals": None if trainer.totals is None else vars(trainer.totals),
            "history": self.history,
        }


def start_run(
    config: TrainConfig,
    dataset: Dataset,
    training: Examples,
    device: torch.device,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> RunState:
    """Return a run at step 0, with weights drawn from ``config.seed``.

    Raises:
        ModelError: the architecture is not known or does not accept images of this data set.
        RunError: a batch is larger than the training set, or cannot be divided as asked.
        DeviceError: the device does not support the precision.
    """
    _check_batch(config, len(training), process_group)
    mean, std = channel_statistics(training.images)
    facts = Checkpoint(
        arch=config.arch,
        arch_args=network_arguments(config, dataset),
        image=dataset.image,
        mean=mean,
        std=std,
        labels=dataset.labels,
        dataset=dataset.name,
        metrics={},
        weights={},
        fingerprint=dataset.fingerprint,
        group_by=config.group_by or "",
        path_column=config.path_column or "",
        label_column=config.label_column or "",
    )
    torch.manual_seed(derived_seed(config.seed, "weights", 0))
    model = build_model(facts, config, device, process_group)
    frozen = freeze(model.network, config.freeze)  # before the gradients of the others are exchanged
    weights = None
    if config.class_weights is not None:
        weights = class_weights(config.class_weights, dataset.labels, training.labels).to(device)
    trainer = Trainer(
        model=model,
        forward=training_forward(model, config, process_group),
        optimizer=create_optimizer(model.network, config),
        average=WeightAverage(model.network, config.ema_decay) if config.ema_decay else None,
        augmentation=chosen_augmentation(config, dataset),
        mixing=chosen_mixing(config, dataset),
        precision=choose_precision(config, device),
        config=config,
        sampler=Sampler.of(config, training.labels),
        class_weights=weights,
        pruning=Pruning.of(config.prune_images, len(training), device) if config.prune_images else None,
        frozen=frozen,
        process_group=process_group,
    )
    return RunState(trainer, facts)


def start_from(state: RunState, given: InitialWeights) -> list[str]:
    """Load what fits of ``given`` into a run at step 0; return lines that say what was taken.

    Raises:
        CheckpointError: nothing fits, or a frozen layer would stay as it was drawn.
    """
    trainer, network = state.trainer, state.trainer.model.network
    given = without_prefix(given, network)
    fit = fit_weights(network, given, state.facts.labels, state.facts.arch)
    if drawn := [name for name in trainer.frozen.parameters if name not in fit.taken]:
        raise CheckpointError(
            f"--freeze {' '.join(trainer.config.freeze)} freezes {min(drawn)}, which {given.source} does not "
            "give: it would stay as it was drawn; freeze less, or leave it out"
        )
    load_fit(network, fit)
    set_initial(state, frozenset(name for name, _ in network.named_parameters() if name in fit.taken))
    if trainer.average is not None:
        trainer.average.load(network.state_dict())
    return fit_lines(network, given, fit)


def set_initial(state: RunState, names: frozenset[str]) -> None:
    """Record which parameters were given; their learning rate may differ, so the optimizer is made anew."""
    state.initial = names
    state.trainer.optimizer = create_optimizer(state.trainer.model.network, state.trainer.config, names)


def _check_batch(config: TrainConfig, image_count: int, process_group: ProcessGroup) -> None:
    if config.batch_size > (taken := kept_count(image_count, config.prune_images)):
        left = (
            f" that --prune-images {config.prune_images:g} leaves of {image_count}"
            if config.prune_images
            else ""
        )
        raise RunError(
            f"batch-size is {config.batch_size}, more than the {taken} training images{left}; "
            "give a smaller one"
        )
    world_size = process_group.world_size
    if config.batch_size % world_size:
        raise RunError(
            f"batch-size is {config.batch_size}, which {world_size} processes cannot share evenly; "
            "give a multiple"
        )
    share = config.batch_size // world_size
    if share < 2 * config.accumulate:
        raise RunError(
            f"batch-size {config.batch_size} leaves {share} images to each of {world_size} processes, too "
            f"few for {config.accumulate} parts of at least 2; give a larger batch-size or a smaller "
            "accumulate"
        )


def _to_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies of ``weights`` on the CPU, which do not change while training continues."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in weights.items()
    }
