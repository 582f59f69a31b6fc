"""Draws the pictures of a report: learning curves, confusion matrix, accuracy per class, and images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

_DOTS_PER_INCH = 130
_TRAINING_COLOUR, _VALIDATION_COLOUR, _RATE_COLOUR = "#4477aa", "#cc6677", "#999933"
# With more classes, numbers in the cells or names beside the rows are no longer legible.
_MOST_NUMBERED_CLASSES, _MOST_NAMED_CLASSES = 30, 100


def check_writable(path: Path) -> None:
    """Check that a picture can be written to ``path``, before anything is read to draw it.

    Raises:
        OSError: it cannot be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    path.open("ab").close()
    if is_new:
        path.unlink()


def draw_curves(
    path: Path, history: Sequence[dict[str, Any]], title: str, best_epoch: int | None = None
) -> None:
    """Draw loss, accuracy and learning rate by epoch, of training and validation, into the PNG ``path``.

    ``best_epoch`` is the one that was chosen; by default that of the highest validation accuracy.
    """
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
    best = max(
        history,
        key=lambda record: (record["epoch"] == best_epoch, record["validation_accuracy"]),
    )
    f1 = [100 * record["validation_macro_f1"] for record in history if "validation_macro_f1" in record]
    if len(f1) == len(history):
        style = {"color": _VALIDATION_COLOUR, "linestyle": ":", "label": "validation, macro-F1"}
        accuracies.plot(epochs, f1, **style)
        accuracies.legend(frameon=False)
    best_place = (best["epoch"], 100 * best["validation_accuracy"])
    accuracies.plot(*best_place, "o", color=_VALIDATION_COLOUR, markersize=9, fillstyle="none")
    rates.plot(epochs, [record["lr"] for record in history], color=_RATE_COLOUR, marker="o", markersize=3)
    rates.set_ylim(bottom=0)
    losses.set_title("loss")
    accuracies.set_title(
        f"accuracy (%), {best['validation_accuracy']:.2%} in epoch {best['epoch']}, which was chosen"
    )
    rates.set_title("learning rate at the epoch's end")
    for axes in (losses, accuracies, rates):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def confusion_matrix(targets: Tensor, predictions: Tensor, class_count: int) -> Tensor:
    """Return counts int64 [K, K]; rows are true classes, columns are predicted ones."""
    counts = torch.bincount(targets * class_count + predictions, minlength=class_count**2)
    return counts.reshape(class_count, class_count)


def draw_confusion_matrix(path: Path, counts: Tensor, labels: Sequence[str], title: str) -> None:
    """Draw ``counts`` [K, K], coloured by their fraction of the true class, into the PNG ``path``."""
    has_numbers = len(labels) <= _MOST_NUMBERED_CLASSES
    side = max(5.0, (0.72 if has_numbers else 0.2) * min(len(labels), _MOST_NAMED_CLASSES) + 1.8)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    shares = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    # The square root makes small fractions visible, which matter most in this picture.
    axes.imshow(shares.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in torch.nonzero(counts).tolist() if has_numbers else []:
        colour = "white" if shares[row, column] > 0.25 else "black"
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class, with its accuracy")
    if len(labels) <= _MOST_NAMED_CLASSES:
        names = [shown(label) for label in labels]
        axes.set_xticks(range(len(labels)), names, rotation=45, ha="right", rotation_mode="anchor")
        per_class = [f"{name}  {shares[index, index]:.1%}" for index, name in enumerate(names)]
        axes.set_yticks(range(len(labels)), per_class)
        axes.set_xticks([index - 0.5 for index in range(1, len(labels))], minor=True)
        axes.set_yticks([index - 0.5 for index in range(1, len(labels))], minor=True)
        axes.grid(which="minor", color="#dddddd", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set_title(title)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def draw_class_accuracies(path: Path, counts: Tensor, labels: Sequence[str], title: str) -> None:
    """Draw the accuracy of each class from ``counts`` [K, K], the lowest first, into the PNG ``path``."""
    occurs = counts.sum(dim=1) > 0
    shares = 100 * counts.diagonal().double() / counts.sum(dim=1).clamp(min=1)
    order = [index for index in shares.argsort(stable=True).tolist() if occurs[index]][:_MOST_NAMED_CLASSES]
    figure = Figure(figsize=(7.5, 0.3 * len(order) + 1.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(order)), shares[order].tolist(), color=_TRAINING_COLOUR, height=0.7)
    axes.bar_label(bars, [f"{shares[index]:.1f}" for index in order], padding=3, fontsize=9)
    axes.set_yticks(range(len(order)), [shown(labels[index]) for index in order])
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("accuracy on test images of the class (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def shown(label: str, most_characters: int = 24) -> str:
    """Return ``label`` for a picture: truncated, with dollar signs escaped, which would begin formulas."""
    cut = label if len(label) <= most_characters else f"{label[: most_characters - 1]}…"
    return cut.replace("$", r"\$")


def draw_images(path: Path, images: Tensor, captions: Sequence[str], title: str, columns: int = 8) -> None:
    """Draw uint8 ``images`` [N, C, H, W] with their captions, row by row, into the PNG ``path``."""
    rows = max(1, -(-len(images) // columns))
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    figure = Figure(figsize=(1.6 * columns, (1.65 + 0.15 * lines) * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, caption in zip(grid.flat, images, captions, strict=False):
        axes.imshow(image.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(caption, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=_DOTS_PER_INCH)
