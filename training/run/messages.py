"""Words the messages of a run: its splits, its progress, its epochs and its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foldserve.text import join_first

if TYPE_CHECKING:
    from foldserve.terminal import Terminal
    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.datasets import Dataset, Examples
    from foldserve.training.engine.loop import Progress

_CLASSES_SHOWN = 20


def report_split(dataset: Dataset, training: Examples, validation: Examples, terminal: Terminal) -> None:
    """Report the number of images of each split, and of each class in training."""
    counts = torch.bincount(training.labels, minlength=len(dataset.labels)).tolist()
    by_label = dict(zip(dataset.labels, counts, strict=True))
    if len(by_label) <= _CLASSES_SHOWN:
        shown = ", ".join(f"{label} {count:,}" for label, count in by_label.items())
    else:
        fewest, most = min(by_label, key=by_label.__getitem__), max(by_label, key=by_label.__getitem__)
        shown = f"{len(by_label):,} classes, {fewest} {by_label[fewest]:,} to {most} {by_label[most]:,}"
    terminal.say(
        f"{len(training):,} images for training ({shown}), {len(validation):,} for validation, "
        f"{len(dataset.test_labels):,} for the test"
    )
    tested = torch.bincount(dataset.test_labels, minlength=len(dataset.labels)).tolist()
    if untested := [label for label, count in zip(dataset.labels, tested, strict=True) if count == 0]:
        terminal.say(
            f"no test images of {join_first(untested)}: the accuracy of these classes will not be known"
        )


def progress_text(progress: Progress, epoch: int, epochs: int) -> str:
    """Return the line of an epoch's progress, with means over the epoch so far."""
    return (
        f"epoch {epoch}/{epochs} step {progress.step}/{progress.steps} loss {progress.loss:.3f} "
        f"accuracy {progress.accuracy:.1%} {progress.images_per_s:,.0f} images/s"
    )


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """Return the line of a finished epoch, from its record in the history."""
    return (
        f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}  "
        f"training loss {record['train_loss']:.3f} accuracy {record['train_accuracy']:.2%}  "
        f"validation loss {record['validation_loss']:.3f} accuracy {record['validation_accuracy']:.2%} "
        f"macro-F1 {record['validation_macro_f1']:.2%}  "
        f"{record['images_per_s']:,.0f} images/s {record['train_s']:.1f} s"
    )


def result_text(best: Checkpoint) -> str:
    """Return the result of a finished run, from its best checkpoint."""
    metrics = best.metrics
    # Runs of earlier versions have no macro-F1.
    f1 = f" and macro-F1 {metrics['test_macro_f1']:.2%}" if "test_macro_f1" in metrics else ""
    return (
        f"test accuracy {metrics['test_accuracy']:.2%}{f1} with the {best.weights_kind} weights of epoch "
        f"{metrics['epoch']}, the best in validation ({metrics['validation_accuracy']:.2%})"
    )
