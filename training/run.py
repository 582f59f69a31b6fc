"""``foldserve train``: a run from settings to report, taken up again where it was interrupted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from training.checkpoint import load_checkpoint, save_checkpoint
from training.datasets import Examples, load_dataset, split_train
from training.device import prepare_device
from training.loop import evaluate, train_one_epoch
from training.report import write_report
from training.run_folder import open_run_folder
from training.run_state import resume_run, start_run
from training.terminal import Terminal
from training.threads import set_fastest_thread_count

if TYPE_CHECKING:
    from training.checkpoint import Checkpoint
    from training.config import TrainConfig
    from training.datasets import Dataset
    from training.loop import Evaluation, Progress
    from training.run_folder import RunFolder
    from training.run_state import RunState


def train(config: TrainConfig, terminal: Terminal | None = None) -> int:
    """Train into ``config.run_dir`` and return 0; an interrupted run goes on, a finished one is left.

    Raises:
        TrainingError: the message says what is wrong and what to do.
    """
    terminal = terminal or Terminal()
    device = prepare_device(config)
    with open_run_folder(config) as folder:
        if (finished := _finished_checkpoint(folder)) is not None:
            terminal.say(f"{folder.path} is finished: {_summary(finished)}; nothing to do")
            return 0
        dataset = load_dataset(config.dataset, config.data_dir, terminal=terminal)
        training, validation = split_train(dataset, config.validation_count)
        state = start_run(config, dataset, training, device)
        _take_up(state, folder, terminal)
        _choose_threads(state, training, terminal)
        _train_epochs(state, training.to(device), validation.to(device), folder, terminal)
        _judge_and_report(folder, dataset, state.history, terminal)
    return 0


def _take_up(state: RunState, folder: RunFolder, terminal: Terminal) -> None:
    trainer = state.trainer
    if resume_run(state, folder):
        terminal.say(
            f"resuming {folder.path} after epoch {len(state.history)} of {trainer.config.epochs} "
            f"(step {trainer.step} of {trainer.total_steps})"
        )
    else:
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        terminal.say(
            f"training {trainer.config.arch} ({parameters:,} parameters) on {state.facts.dataset} "
            f"into {folder.path}, on {trainer.model.mean.device}"
        )
    folder.write_history(state.history)


def _choose_threads(state: RunState, training: Examples, terminal: Terminal) -> None:
    """Choose the number of threads by trying: on the CPU, where none is given and bits need not repeat."""
    config, model = state.trainer.config, state.trainer.model
    if config.threads is not None or config.deterministic or model.mean.device.type != "cpu":
        return
    count, most = set_fastest_thread_count(model, training.images[: config.batch_size])
    if count < most:
        terminal.say(
            f"{count} of {most} threads are faster: the processors are busy, or the network is small"
        )


def _train_epochs(
    state: RunState, training: Examples, validation: Examples, folder: RunFolder, terminal: Terminal
) -> None:
    trainer = state.trainer
    with terminal.training(trainer.total_steps, trainer.step) as show:
        while trainer.step < trainer.total_steps:
            epoch = len(state.history) + 1

            def report(progress: Progress, epoch: int = epoch) -> None:
                show(trainer.step, _progress_text(progress, epoch, trainer.config.epochs))

            progress = train_one_epoch(trainer, training, report)
            evaluation = evaluate(state.served_model, validation)
            state.history.append(_record(state, progress, evaluation))
            terminal.say(_epoch_line(state.history[-1], trainer.config.epochs))
            _save(state, folder)


def _save(state: RunState, folder: RunFolder) -> None:
    record = state.history[-1]
    if record["validation_accuracy"] >= max(other["validation_accuracy"] for other in state.history):
        save_checkpoint(folder.best, state.to_checkpoint(resumable=False))
    save_checkpoint(folder.last, state.to_checkpoint(resumable=True))
    folder.append_record(record)


def _judge_and_report(
    folder: RunFolder, dataset: Dataset, history: list[dict[str, Any]], terminal: Terminal
) -> None:
    """Judge the weights to serve on the test images, read here alone; draw; mark the run as finished."""
    best = load_checkpoint(folder.best)
    test = evaluate(best.build(), Examples(dataset.test_images, dataset.test_labels))
    write_report(folder.report, history, test.predictions, dataset)
    best = replace(best, metrics=best.metrics | {"test_loss": test.loss, "test_accuracy": test.accuracy})
    save_checkpoint(folder.best, best)
    terminal.say(f"{_summary(best)}; checkpoint {folder.best}, report {folder.report}")


def _finished_checkpoint(folder: RunFolder) -> Checkpoint | None:
    """Return the best checkpoint of a finished run: one that was judged on the test images."""
    if not folder.best.exists():
        return None
    best = load_checkpoint(folder.best)
    return best if "test_accuracy" in best.metrics else None


def _record(state: RunState, progress: Progress, evaluation: Evaluation) -> dict[str, Any]:
    """Return the figures of an epoch as they stand in metrics.jsonl."""
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


def _progress_text(progress: Progress, epoch: int, epochs: int) -> str:
    return (
        f"epoch {epoch}/{epochs} step {progress.step}/{progress.steps} loss {progress.loss:.3f} "
        f"accuracy {progress.accuracy:.1%} {progress.images_per_s:,.0f} images/s"
    )


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"training loss {record['train_loss']:.3f} accuracy {record['train_accuracy']:.2%}  "
        f"validation loss {record['validation_loss']:.3f} accuracy {record['validation_accuracy']:.2%}  "
        f"{record['images_per_s']:,.0f} images/s {record['train_s']:.1f} s"
    )


def _summary(best: Checkpoint) -> str:
    metrics = best.metrics
    return (
        f"test accuracy {metrics['test_accuracy']:.2%} with the {best.weights_kind} weights of epoch "
        f"{metrics['epoch']}, the best in validation ({metrics['validation_accuracy']:.2%})"
    )
