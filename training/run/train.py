"""Runs ``foldserve train`` from settings to report, and resumes an interrupted run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldserve.terminal import Terminal
from foldserve.text import escaped
from foldserve.training.checkpoint import load_checkpoint, save_checkpoint
from foldserve.training.datasets import Examples, load_dataset, split_train
from foldserve.training.datasets.image_folder import fingerprint_of
from foldserve.training.engine.device import prepare_device
from foldserve.training.engine.distributed import join_process_group
from foldserve.training.engine.evaluation import evaluate
from foldserve.training.engine.loop import check_finite, train_one_epoch
from foldserve.training.engine.threads import set_fastest_thread_count
from foldserve.training.errors import CheckpointError, RunError
from foldserve.training.run.messages import epoch_line, progress_text, report_split, result_text
from foldserve.training.run.preview import check_preview, write_preview
from foldserve.training.run.report import write_report
from foldserve.training.run.run_folder import open_run_folder
from foldserve.training.run.run_state import HISTORY_FIELDS, check_same_data, resume_run, start_run
from foldserve.training.run.tensorboard import tensorboard_log

if TYPE_CHECKING:
    import torch

    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset
    from foldserve.training.engine.distributed import ProcessGroup
    from foldserve.training.engine.evaluation import Evaluation
    from foldserve.training.engine.loop import Progress
    from foldserve.training.run.run_folder import RunFolder
    from foldserve.training.run.run_state import RunState

# Size of a checkpoint without its tensors: names, settings, history.
_CHECKPOINT_FACTS_BYTES = 1024 * 1024


def train(config: TrainConfig, terminal: Terminal | None = None) -> int:
    """Train into ``config.run_dir`` and return 0; resume an interrupted run, leave a finished one unchanged.

    Under a launcher such as torchrun, all processes call this; the main process writes files and messages.

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
        )
    return 0


def _run(
    config: TrainConfig,
    folder: RunFolder,
    device: torch.device,
    process_group: ProcessGroup,
    terminal: Terminal,
) -> None:
    if (finished := process_group.broadcast(_finished_summary(folder, config))) is not None:
        terminal.say(f"{folder.path} is finished: {finished}; nothing to do")
        return
    dataset = _load(config, terminal)
    training, validation = split_train(dataset, config.validation_count)
    report_split(dataset, training, validation, terminal)
    state = start_run(config, dataset, training, device, process_group)
    _resume(state, folder, terminal)
    _choose_threads(state, training, terminal)
    _train_epochs(
        state,
        training.to_device_if_it_fits(device),
        validation.to_device_if_it_fits(device),
        folder,
        terminal,
    )
    _evaluate_and_report(state, dataset, folder, terminal)


def _load(config: TrainConfig, terminal: Terminal) -> Dataset:
    return load_dataset(
        config.dataset,
        config.data_dir,
        image_size=config.image_size,
        skip_unreadable=config.skip_unreadable,
        terminal=terminal,
    )


def _preview(config: TrainConfig, terminal: Terminal) -> int:
    assert config.preview is not None
    check_preview(config.preview)
    write_preview(config.preview, config, _load(config, terminal))
    terminal.say(f"augmented training images: {config.preview}")
    return 0


def _resume(state: RunState, folder: RunFolder, terminal: Terminal) -> None:
    trainer = state.trainer
    is_writer = trainer.process_group.is_main_process
    if resume_run(state, folder):
        done, epochs = len(state.history), trainer.config.epochs
        where = f"in epoch {done + 1} of {epochs}" if done < epochs else "after its last epoch"
        terminal.say(f"resuming {folder.path} {where} at step {trainer.step} of {trainer.total_steps}")
    else:
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        processes = (
            f" in {trainer.process_group.world_size} processes"
            if trainer.process_group.world_size > 1
            else ""
        )
        terminal.say(
            f"training {trainer.config.arch} ({parameters:,} parameters) on {state.facts.dataset} "
            f"into {folder.path}, on {trainer.model.mean.device}{processes}, {trainer.precision.name}"
        )
    if is_writer:
        folder.check_room(_checkpoint_bytes(state))
        folder.write_history(state.history)


def _checkpoint_bytes(state: RunState) -> int:
    """Return the approximate size of ``last.pt``: weights, their average, and the optimizer's state."""
    trainer = state.trainer
    weights: int = sum(value.nbytes for value in trainer.model.state_dict().values())
    copies = 1 + (trainer.average is not None) + (2 if trainer.config.optimizer == "adamw" else 1)
    return copies * weights + _CHECKPOINT_FACTS_BYTES


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
            f"using {count} of {most} threads, which is faster: the CPUs are busy, or the network is small"
        )


def _train_epochs(
    state: RunState, training: Examples, validation: Examples, folder: RunFolder, terminal: Terminal
) -> None:
    trainer = state.trainer
    epochs = trainer.config.epochs
    saver = _Saver(state, training, folder)
    with (
        terminal.training(trainer.total_steps, trainer.step) as show,
        tensorboard_log(folder.tensorboard, trainer.step, is_on=trainer.process_group.is_main_process) as log,
    ):

        def report(progress: Progress) -> None:
            show(trainer.step, progress_text(progress, len(state.history) + 1, epochs))
            log({"lr": trainer.lr, "train_step_loss": progress.loss}, trainer.step)

        while len(state.history) < epochs:
            progress = train_one_epoch(trainer, training, report, saver.after_step)
            evaluation = evaluate(state.served_model, validation, trainer.process_group)
            state.history.append(_record(state, progress, evaluation))
            terminal.say(epoch_line(state.history[-1], epochs))
            saver.after_epoch()
            log(state.history[-1], trainer.step)


class _Saver:
    """Writes last.pt every ``checkpoint_every`` seconds and per epoch, and best.pt after a best epoch."""

    def __init__(self, state: RunState, training: Examples, folder: RunFolder) -> None:
        self._state, self._training, self._folder = state, training, folder
        self._is_writer = state.trainer.process_group.is_main_process
        self._saved_at = time.monotonic()

    def after_step(self) -> None:
        """Write last.pt if it is due."""
        if (
            self._is_writer
            and time.monotonic() - self._saved_at >= self._state.trainer.config.checkpoint_every
        ):
            self._save_last()

    def after_epoch(self) -> None:
        """Write best.pt if this epoch is the best so far, then last.pt, then the epoch's figures."""
        if not self._is_writer:
            return
        history = self._state.history
        if history[-1]["validation_accuracy"] >= max(record["validation_accuracy"] for record in history):
            save_checkpoint(self._folder.best, self._state.to_checkpoint(resumable=False))
        self._save_last()
        self._folder.append_record(history[-1])

    def _save_last(self) -> None:
        check_finite(self._state.trainer, self._training)
        save_checkpoint(self._folder.last, self._state.to_checkpoint(resumable=True))
        self._saved_at = time.monotonic()


def _evaluate_and_report(state: RunState, dataset: Dataset, folder: RunFolder, terminal: Terminal) -> None:
    """Evaluate the best weights on the test images, only here; write the report; mark the run as finished."""
    process_group, device = state.trainer.process_group, state.trainer.model.mean.device
    best = process_group.broadcast(
        _load_best(state, folder) if process_group.is_main_process else state.facts
    )
    test = evaluate(
        best.build().to(device), Examples(dataset.test_images, dataset.test_labels), process_group
    )
    if not process_group.is_main_process:
        return
    best = replace(best, metrics=best.metrics | {"test_loss": test.loss, "test_accuracy": test.accuracy})
    write_report(
        folder.report,
        best=best,
        history=state.history,
        test=test,
        dataset=dataset,
        config=state.trainer.config,
    )
    save_checkpoint(folder.best, best)
    terminal.say(f"{result_text(best)}; checkpoint {folder.best}, report {folder.report}")


def _load_best(state: RunState, folder: RunFolder) -> Checkpoint:
    best = load_checkpoint(folder.best)
    try:
        check_same_data(best, state.facts)
    except CheckpointError as error:
        reason = escaped(str(error))
        raise CheckpointError(f"{folder.best} is not of this run: {reason}; delete the folder") from error
    if missing := [name for name in HISTORY_FIELDS if name not in best.metrics]:
        raise CheckpointError(f"{folder.best} is malformed: its metrics have no {missing[0]}")
    return best


def _finished_summary(folder: RunFolder, config: TrainConfig) -> str | None:
    """Return the result of a finished run, whose best.pt has figures of the test images; else None.

    Raises:
        RunError: the images have changed since.
    """
    if not folder.best.exists():
        return None
    best = load_checkpoint(folder.best)
    if not best.metrics.keys() >= {"test_accuracy", *HISTORY_FIELDS}:
        return None
    if best.fingerprint and _has_changed(best, config):
        raise RunError(
            f"{folder.path} has a finished run on other images than {config.dataset} has now; use another "
            "--run-dir, or delete the folder"
        )
    return result_text(best)


def _has_changed(best: Checkpoint, config: TrainConfig) -> bool:
    """Return whether a folder of images has changed since ``best``; False if it no longer exists."""
    place = config.data_dir or Path(config.dataset)
    return place.exists() and fingerprint_of(place) != best.fingerprint


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
        "images_per_s": progress.images_per_s,
        "train_s": progress.elapsed_s,
    }
