"""Runs ``foldserve train`` from settings to report, and resumes an interrupted run."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from foldserve.terminal import Terminal
from foldserve.training.checkpoint import load_checkpoint, save_checkpoint
from foldserve.training.datasets import Examples, load_dataset, split_train
from foldserve.training.engine.device import prepare_device
from foldserve.training.engine.distributed import join_process_group
from foldserve.training.engine.evaluation import evaluate
from foldserve.training.engine.loop import train_one_epoch
from foldserve.training.engine.threads import set_fastest_thread_count
from foldserve.training.engine.time_budget import TimeBudget
from foldserve.training.run.chosen_settings import complete_settings, follow_weights
from foldserve.training.run.finishing import early_end, evaluate_and_report, finished_summary
from foldserve.training.run.initial_weights import read_initial_weights
from foldserve.training.run.messages import (
    epoch_line,
    progress_text,
    report_near_duplicates,
    report_split,
)
from foldserve.training.run.mlflow_log import mlflow_log, wants_mlflow
from foldserve.training.run.preview import check_preview, write_preview
from foldserve.training.run.resuming import extend_run, preparation_rules, resume_run
from foldserve.training.run.run_folder import another_run_dir, open_run_folder
from foldserve.training.run.run_state import start_from, start_run
from foldserve.training.run.saver import Saver
from foldserve.training.run.tensorboard import tensorboard_log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from foldserve.imaging import DecodeRule, FitRule
    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset
    from foldserve.training.engine.distributed import ProcessGroup
    from foldserve.training.engine.evaluation import Evaluation
    from foldserve.training.engine.loop import Progress
    from foldserve.training.run.initial_weights import InitialWeights
    from foldserve.training.run.run_folder import RunFolder
    from foldserve.training.run.run_state import RunState

# Size of a checkpoint without its tensors: names, settings, history.
_CHECKPOINT_FACTS_BYTES = 1024 * 1024


def train(
    config: TrainConfig,
    terminal: Terminal | None = None,
    *,
    after_epoch: Callable[[Sequence[dict[str, Any]]], None] | None = None,
    judge: bool = True,
) -> int:
    """Train into ``config.run_dir`` and return 0; resume an interrupted run, leave a finished one unchanged.

    Under a launcher such as torchrun, all processes call this; the main process writes files and messages.

    Args:
        config: settings of the run.
        terminal: where messages go; standard output by default.
        after_epoch: called by the main process with the figures of all epochs so far, after each epoch and
            as a run is resumed. What it raises ends the run, which can be resumed.
        judge: judge the best weights on the test images at the end and write the report. Else the run stays
            unfinished, and a later call with ``judge`` finishes it.

    Raises:
        TrainingError: training is not possible; the message says why, and what to do.
    """
    terminal = terminal or Terminal()
    device = prepare_device(config)
    if config.preview is not None:
        return _preview(config, terminal)
    with (
        join_process_group(device) as process_group,
        open_run_folder(config, is_writer=process_group.is_main_process) as folder,
    ):
        _run(
            config,
            folder,
            device,
            process_group,
            terminal if process_group.is_main_process else Terminal.silent(),
            after_epoch=after_epoch if process_group.is_main_process else None,
            judge=judge,
        )
    return 0


def _run(
    config: TrainConfig,
    folder: RunFolder,
    device: torch.device,
    process_group: ProcessGroup,
    terminal: Terminal,
    *,
    after_epoch: Callable[[Sequence[dict[str, Any]]], None] | None,
    judge: bool,
) -> None:
    is_logged = wants_mlflow(config) and process_group.is_main_process
    budget = None if config.time_limit is None else TimeBudget(config.time_limit)
    # The main process knows what the run in the folder decided.
    config = process_group.broadcast(folder.config) or config
    finished = process_group.broadcast(finished_summary(folder, config))
    if finished is not None and not process_group.broadcast(folder.changed):
        terminal.say(
            f"{folder.path} is finished: {finished}; nothing to do. Go on with --resume --epochs N, or train "
            f"anew with --run-dir {another_run_dir(folder.path)}"
        )
        return
    # A run goes on as it began, also one from before there was a choice.
    rules = process_group.broadcast(preparation_rules(folder) if process_group.is_main_process else None)
    is_new = process_group.broadcast(not folder.last.exists())
    given = None
    if is_new and config.init is not None:
        given = process_group.broadcast(
            read_initial_weights(config.init) if process_group.is_main_process else None
        )
        assert given is not None
        config = follow_weights(config, given, terminal)
    dataset = _load(config, terminal, *(rules or (None, None)))
    training, validation = split_train(dataset, config.validation_count)
    report_split(dataset, training, validation, terminal)
    if is_new:
        config = complete_settings(
            config, dataset, training, len(validation), device=device, terminal=terminal
        )
        report_near_duplicates(dataset, training, validation, terminal)
    state = start_run(config, dataset, training, device, process_group)
    if budget is not None:
        budget.evaluated_images, budget.test_images = len(validation), judge * len(dataset.test_labels)
        state.trainer.budget = budget
    _begin(state, folder, terminal, given)
    _choose_threads(state, training, terminal)
    with mlflow_log(state.trainer.config, folder.path, terminal, is_on=is_logged) as log:
        _train_epochs(
            state,
            training.to_device_if_it_fits(device),
            validation.to_device_if_it_fits(device),
            folder,
            terminal,
            log_epoch=log,
            after_epoch=after_epoch,
        )
        if judge:
            log(evaluate_and_report(state, dataset, folder, terminal), state.trainer.step)


def _load(
    config: TrainConfig, terminal: Terminal, decode: DecodeRule | None = None, fit: FitRule | None = None
) -> Dataset:
    return load_dataset(
        config.dataset,
        config.data_dir,
        image_size=config.image_size,
        decode=decode,
        fit=fit or config.fit,
        skip_broken=config.skip_broken,
        terminal=terminal,
        arch=config.arch if "arch" in config.given else None,
        group_by=config.group_by,
        path_column=config.path_column,
        label_column=config.label_column,
    )


def _preview(config: TrainConfig, terminal: Terminal) -> int:
    path = config.preview
    assert path is not None
    check_preview(path)
    if config.init is not None:
        config = follow_weights(config, read_initial_weights(config.init), terminal)
    dataset = _load(config, terminal)
    training, validation = split_train(dataset, config.validation_count)
    config = complete_settings(
        config, dataset, training, len(validation), device=torch.device("cpu"), terminal=terminal
    )
    write_preview(path, config, dataset)
    terminal.say(f"augmented training images: {path}")
    return 0


def _begin(state: RunState, folder: RunFolder, terminal: Terminal, given: InitialWeights | None) -> None:
    """Resume the run in ``folder``, or start one, from the weights ``given`` if there are any."""
    trainer = state.trainer
    config, is_writer = trainer.config, trainer.process_group.is_main_process
    is_resumed = resume_run(state, folder)
    if changed := trainer.process_group.broadcast(folder.changed):
        extend_run(state, changed)
        _write_extended(state, folder)
    if is_resumed:
        done, epochs = len(state.history), config.epochs
        where = "after its last epoch" if state.is_over else f"in epoch {done + 1} of {epochs}"
        terminal.say(f"resuming {folder.path} {where} at step {trainer.step} of {trainer.total_steps}")
    else:
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        processes = (
            f" in {trainer.process_group.world_size} processes"
            if trainer.process_group.world_size > 1
            else ""
        )
        terminal.say(
            f"training {config.arch} ({parameters:,} parameters) on {state.facts.dataset} "
            f"into {folder.path}, on {trainer.model.mean.device}{processes}, {trainer.precision.name}"
        )
        if given is not None:
            for line in start_from(state, given):
                terminal.say(line)
        if is_writer:
            folder.write_settings(config)
    for line in _unusual(state):
        terminal.say(line)
    if is_writer:
        folder.check_room(_checkpoint_bytes(state))
        folder.write_history(state.history)


def _write_extended(state: RunState, folder: RunFolder) -> None:
    """Record that a run ends at another time: it is no longer finished, so it is judged once more."""
    if not state.trainer.process_group.is_main_process:
        return
    if folder.best.exists():
        best = load_checkpoint(folder.best)
        metrics = {name: value for name, value in best.metrics.items() if not name.startswith("test_")}
        save_checkpoint(folder.best, replace(best, metrics=metrics))
    folder.write_settings(state.trainer.config)


def _unusual(state: RunState) -> list[str]:
    """Return lines about how the run treats its images and weights, where that is not as usual."""
    trainer, labels = state.trainer, state.facts.labels
    lines = [line] if (line := trainer.sampler.describe()) else []
    if trainer.pruning is not None:
        lines.append(trainer.pruning.describe(trainer.steps_per_epoch))
    if trainer.class_weights is not None:
        by_label = sorted(zip(trainer.class_weights.tolist(), labels, strict=True))
        (low, one), (high, other) = by_label[0], by_label[-1]
        lines.append(f"weights of the classes in the loss: {low:.3g} ({one}) to {high:.3g} ({other})")
    if trainer.frozen.parameters:
        count = sum(1 for parameter in trainer.model.parameters() if parameter.requires_grad)
        lines.append(f"frozen: {len(trainer.frozen.parameters)} weights; {count} are trained")
    return lines


def _checkpoint_bytes(state: RunState) -> int:
    """Return the approximate size of ``last.pt``: weights, their average, the optimizer's state, losses."""
    trainer = state.trainer
    weights: int = sum(value.nbytes for value in trainer.model.state_dict().values())
    copies = 1 + (trainer.average is not None) + (2 if trainer.config.optimizer == "adamw" else 1)
    losses = 0 if trainer.pruning is None else 2 * trainer.pruning.before.nbytes
    return copies * weights + losses + _CHECKPOINT_FACTS_BYTES


def _choose_threads(state: RunState, training: Examples, terminal: Terminal) -> None:
    """Set the fastest number of threads: on the CPU, if none is given and bits need not repeat."""
    trainer, config = state.trainer, state.trainer.config
    is_free = config.threads is None and not config.deterministic and trainer.process_group.world_size == 1
    if not is_free or trainer.model.mean.device.type != "cpu":
        return
    with trainer.precision.computing():
        count, most = set_fastest_thread_count(trainer.model, training.images[: config.batch_size])
    if count < most:
        terminal.say(
            f"using {count} of {most} threads: more were measured and are no faster (the CPUs are busy, or "
            "the network is small)"
        )


def _train_epochs(
    state: RunState,
    training: Examples,
    validation: Examples,
    folder: RunFolder,
    terminal: Terminal,
    *,
    log_epoch: Callable[[Mapping[str, Any], int], None],
    after_epoch: Callable[[Sequence[dict[str, Any]]], None] | None,
) -> None:
    trainer, budget = state.trainer, state.trainer.budget
    epochs, most_steps = trainer.config.epochs, trainer.total_steps
    saver = Saver(state, training, validation, folder)
    with (
        terminal.training(most_steps, trainer.step) as show,
        tensorboard_log(folder.tensorboard, trainer.step, is_on=trainer.process_group.is_main_process) as log,
    ):

        def report(progress: Progress) -> None:
            done = trainer.step * most_steps // trainer.total_steps  # a time limit changes what is to do
            show(done, progress_text(progress, len(state.history) + 1, epochs))
            log({"lr": trainer.lr, "train_step_loss": progress.loss}, trainer.step)

        if budget is not None:
            budget.mark(trainer.step)
        if after_epoch is not None and state.history:
            after_epoch(state.history)
        while not state.is_over:
            progress = train_one_epoch(trainer, training, report, saver.after_step)
            started = time.monotonic()
            evaluation = evaluate(state.served_model, validation, trainer.process_group)
            if budget is not None:
                budget.evaluated(time.monotonic() - started)
            state.history.append(_record(state, progress, evaluation))
            terminal.say(epoch_line(state.history[-1], epochs))
            if trainer.step < trainer.total_steps:
                trainer.plan()
            saver.after_epoch()
            log(state.history[-1], trainer.step)
            log_epoch(state.history[-1], trainer.step)
            if after_epoch is not None:
                after_epoch(state.history)
    if len(state.history) < epochs and state.history:
        terminal.say(early_end(state))


def _record(state: RunState, progress: Progress, evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures of an epoch, as written to metrics.jsonl."""
    return {
        "epoch": len(state.history) + 1,
        "step": state.trainer.step,
        "lr": state.trainer.lr,
        "train_loss": progress.loss,
        "train_accuracy": progress.accuracy,
        "validation_loss": evaluation.loss,
        "validation_accuracy": evaluation.accuracy,
        "validation_macro_f1": evaluation.macro_f1,
        "images_per_s": progress.images_per_s,
        "train_s": progress.elapsed_s,
    }
