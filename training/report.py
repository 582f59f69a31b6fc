"""Pictures of a finished run: how it learnt, and what it confuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from training.datasets import Dataset

CURVES_FILE = "curves.png"
CONFUSION_FILE = "confusion_matrix.png"

_DOTS_PER_INCH = 130
_TRAINING_COLOUR, _VALIDATION_COLOUR, _RATE_COLOUR = "#4477aa", "#cc6677", "#999933"


def write_report(
    folder: Path, history: Sequence[dict[str, Any]], test_predictions: Tensor, dataset: Dataset
) -> None:
    """Draw ``history``'s curves and the confusion matrix of ``test_predictions`` int64 [N] into ``folder``.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    draw_curves(folder / CURVES_FILE, history, dataset.name)
    counts = confusion_matrix(dataset.test_labels, test_predictions, len(dataset.labels))
    accuracy = counts.trace().item() / counts.sum().item()
    title = f"{dataset.name}: {accuracy:.2%} of {counts.sum().item():,} test images"
    draw_confusion_matrix(folder / CONFUSION_FILE, counts, dataset.labels, title)


def draw_curves(path: Path, history: Sequence[dict[str, Any]], title: str) -> None:
    """Draw loss, accuracy and learning rate by epoch, of training and validation, into the PNG ``path``."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in history]
    for axes, kind in ((losses, "loss"), (accuracies, "accuracy")):
        scale = 100 if kind == "accuracy" else 1
        for split, colour in (("train", _TRAINING_COLOUR), ("validation", _VALIDATION_COLOUR)):
            label = "training, as augmented" if split == "train" else "validation"
            values = [scale * record[f"{split}_{kind}"] for record in history]
            axes.plot(epochs, values, color=colour, label=label, marker="o", markersize=3)
        axes.legend(frameon=False)
    best = max(history, key=lambda record: record["validation_accuracy"])
    best_place = (best["epoch"], 100 * best["validation_accuracy"])
    accuracies.plot(*best_place, "o", color=_VALIDATION_COLOUR, markersize=9, fillstyle="none")
    rates.plot(epochs, [record["lr"] for record in history], color=_RATE_COLOUR, marker="o", markersize=3)
    rates.set_ylim(bottom=0)
    losses.set_title("loss")
    accuracies.set_title(f"accuracy (%), best {best['validation_accuracy']:.2%} in epoch {best['epoch']}")
    rates.set_title("learning rate at the epoch's end")
    for axes in (losses, accuracies, rates):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def confusion_matrix(targets: Tensor, predictions: Tensor, class_count: int) -> Tensor:
    """Return counts int64 [K, K]: row is the true class, column the predicted one."""
    counts = torch.bincount(targets * class_count + predictions, minlength=class_count**2)
    return counts.reshape(class_count, class_count)


def draw_confusion_matrix(path: Path, counts: Tensor, labels: Sequence[str], title: str) -> None:
    """Draw ``counts`` [K, K], coloured by their share of the true class, into the PNG ``path``."""
    side = max(5.0, 0.72 * len(labels) + 1.8)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    # The square root spreads the small shares, which are what the picture is looked at for.
    axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in torch.nonzero(counts).tolist():
        colour = "white" if shares[row, column] > 0.25 else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    per_class = [f"{label}  {shares[index, index]:.1%}" for index, label in enumerate(labels)]
    axes.set_yticks(range(len(labels)), per_class)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class, and how much of it is found")
    axes.set_xticks([index - 0.5 for index in range(1, len(labels))], minor=True)
    axes.set_yticks([index - 0.5 for index in range(1, len(labels))], minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set_title(title)
    figure.savefig(path, dpi=_DOTS_PER_INCH)
