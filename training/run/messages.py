"""Words the messages of a run: its splits, its progress, its epochs and its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from foldserve.text import join_first
from foldserve.training.datasets import Examples
from foldserve.training.datasets.near_duplicates import find_near_duplicates

if TYPE_CHECKING:
    from foldserve.terminal import Terminal
    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset
    from foldserve.training.engine.loop import Progress
    from foldserve.training.run.run_state import RunState

_CLASSES_SHOWN = 20
# How many times as many images the largest class has, from which on that is said.
_UNEQUAL = 5


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


def report_near_duplicates(
    dataset: Dataset, training: Examples, validation: Examples, terminal: Terminal
) -> None:
    """Report images of a folder that are in training and, nearly the same, in validation or the test."""
    if not dataset.is_folder:
        return
    test = Examples(dataset.test_images, dataset.test_labels)
    for name, judging in (("validation", validation), ("test", test)):
        found = find_near_duplicates(judging, training)
        if found is None:
            terminal.say(f"near-duplicates between training and {name} are not looked for: too many images")
        elif len(found):
            labels = f", {found.other_class:,} of them in another class" if found.other_class else ""
            terminal.say(
                f"warning: {len(found):,} of {len(judging):,} {name} images are nearly the same as one in "
                f"training{labels}: the accuracy will be too high; remove copies, or keep pictures of one "
                "thing together with --group-by"
            )


def report_imbalance(config: TrainConfig, training: Examples, terminal: Terminal) -> None:
    """Report a large difference between the classes, if nothing is done about it."""
    counts = torch.bincount(training.labels)
    present = counts[counts > 0]
    ratio = int(present.max()) / int(present.min())
    is_handled = config.class_weights is not None or config.sampler == "balanced"
    if ratio >= _UNEQUAL and not is_handled:
        terminal.say(
            f"the largest class has {ratio:.0f} times as many images as the smallest: if all classes matter "
            "the same, try --sampler balanced or --class-weights balanced, with --select macro-f1"
        )


def ended_by_patience(state: RunState) -> str:
    """Return when and why --patience ended a run."""
    config, count = state.trainer.config, state.epochs_without_gain
    return (
        f"stopped after epoch {len(state.history)} by --patience {config.patience}: {count} "
        f"epoch{'' if count == 1 else 's'} without a better {config.select} in validation"
    )


def what_to_try(state: RunState) -> str:
    """Return what may help a network that has learnt nothing."""
    config, done = state.trainer.config, len(state.history)
    if done == config.epochs:
        longer = f"more --epochs (now {done})"
    elif state.is_out_of_patience:
        longer = f"a larger --patience (now {config.patience}, after epoch {done} of {config.epochs})"
    else:
        longer = f"a longer --time-limit (it allowed {done} of {config.epochs} epochs)"
    other = "resnet" if config.arch != "resnet" else "lenet"
    return (
        f"Try a lower rate (--lr {config.lr / 10:g}), {longer}, --no-augment, or "
        f"--arch {other}; look at the images with --preview, and at the labels"
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


def chosen_as(config: TrainConfig) -> str:
    """Return how the epoch that is kept was chosen."""
    errors = config.select_within
    if not errors:
        return "the best"
    return f"the last within {errors:g} standard error{'' if errors == 1 else 's'} of the best"


def result_text(best: Checkpoint, config: TrainConfig) -> str:
    """Return the result of a finished run, from its best checkpoint."""
    metrics = best.metrics
    # Runs of earlier versions have no macro-F1.
    f1 = f" and macro-F1 {metrics['test_macro_f1']:.2%}" if "test_macro_f1" in metrics else ""
    return (
        f"test accuracy {metrics['test_accuracy']:.2%}{f1} with the {best.weights_kind} weights of epoch "
        f"{metrics['epoch']}, {chosen_as(config)} in validation ({metrics['validation_accuracy']:.2%})"
    )
