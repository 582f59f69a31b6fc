"""Writes the report of a finished run: pictures, a page with figures and settings, and sample images."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import torch

from foldserve.terminal import duration_text
from foldserve.training.run.pictures import (
    confusion_matrix,
    draw_class_accuracies,
    draw_confusion_matrix,
    draw_curves,
    draw_images,
    shown,
)
from foldserve.training.run.samples import SAMPLES_FOLDER, write_samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset
    from foldserve.training.engine.evaluation import Evaluation

PAGE_FILE = "report.html"
CURVES_FILE = "curves.png"
CONFUSION_FILE = "confusion_matrix.png"
CLASSES_FILE = "class_accuracies.png"
MISTAKES_FILE = "mistakes.png"

_MISTAKE_COUNT = 32


def write_report(
    folder: Path,
    *,
    best: Checkpoint,
    history: Sequence[dict[str, Any]],
    test: Evaluation,
    dataset: Dataset,
    config: TrainConfig,
) -> None:
    """Write pictures of ``history`` and ``test``, a page that shows them, and sample images into ``folder``.

    The sample images are for a try of the served model.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    counts = confusion_matrix(dataset.test_labels, test.predictions, len(dataset.labels))
    title = f"{dataset.name}: {test.accuracy:.2%} of {len(dataset.test_labels):,} test images"
    draw_curves(folder / CURVES_FILE, history, dataset.name, best.metrics.get("epoch"))
    draw_confusion_matrix(folder / CONFUSION_FILE, counts, dataset.labels, title)
    draw_class_accuracies(folder / CLASSES_FILE, counts, dataset.labels, title)
    draw_mistakes(folder / MISTAKES_FILE, test, dataset)
    write_samples(folder / SAMPLES_FOLDER, dataset)
    page = _page(best, history, config)
    # The name of a run folder need not be UTF-8.
    (folder / PAGE_FILE).write_text(page, encoding="utf-8", errors="backslashreplace")


def worst_mistakes(test: Evaluation, targets: torch.Tensor, count: int) -> torch.Tensor:
    """Return indices int64 of at most ``count`` misclassified images, the most confident first."""
    wrong = torch.nonzero(test.predictions != targets).flatten()
    return wrong[test.confidences[wrong].argsort(descending=True, stable=True)][:count]


def draw_mistakes(path: Path, test: Evaluation, dataset: Dataset) -> None:
    """Draw the most confident mistakes, with true and predicted class, into ``path``."""
    worst = worst_mistakes(test, dataset.test_labels, _MISTAKE_COUNT)
    captions = [
        f"{shown(dataset.labels[target], 14)}, predicted\n"
        f"{shown(dataset.labels[prediction], 14)} {confidence:.0%}"
        for target, prediction, confidence in zip(
            dataset.test_labels[worst].tolist(),
            test.predictions[worst].tolist(),
            test.confidences[worst].tolist(),
            strict=True,
        )
    ]
    mistakes = int((test.predictions != dataset.test_labels).sum())
    title = f"the {len(worst)} most confident of {mistakes:,} mistakes" if mistakes else "no mistakes"
    draw_images(path, dataset.test_images[worst], captions, title)


def _page(best: Checkpoint, history: Sequence[dict[str, Any]], config: TrainConfig) -> str:
    metrics = best.metrics
    selected = f"validation_{config.select.replace('-', '_')}"
    parameters = sum(parameter.numel() for parameter in best.build().parameters())
    facts = {
        "test accuracy": f"{metrics['test_accuracy']:.2%}",
        **({"test macro-F1": f"{metrics['test_macro_f1']:.2%}"} if "test_macro_f1" in metrics else {}),
        "test loss": f"{metrics['test_loss']:.4f}",
        f"validation {config.select}": f"{metrics[selected]:.2%}, the best, in epoch {metrics['epoch']}",
        "weights": f"{best.weights_kind}, {parameters:,} parameters",
        "training time": duration_text(sum(record["train_s"] for record in history)),
    }
    settings = {name.replace("_", "-"): value for name, value in config.model_dump(mode="json").items()}
    heading = html.escape(f"{best.arch} on {best.dataset}")
    pictures = "\n".join(
        f'<h2>{caption}</h2>\n<a href="{file}"><img src="{file}" alt="{caption}"></a>'
        for caption, file in (
            ("Learning curves", CURVES_FILE),
            ("Confusion matrix", CONFUSION_FILE),
            ("Accuracy per class", CLASSES_FILE),
            ("Most confident mistakes", MISTAKES_FILE),
        )
    )
    return _TEMPLATE.format(
        heading=heading, facts=_rows(facts.items()), pictures=pictures, settings=_rows(settings.items())
    )


def _rows(entries: Iterable[tuple[str, Any]]) -> str:
    return "\n".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in entries
    )


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{heading}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; height: auto; }}
th {{ text-align: left; font-weight: normal; color: #555; padding-right: 1.5rem; }}
td {{ font-variant-numeric: tabular-nums; }}
</style>
</head>
<body>
<h1>{heading}</h1>
<table>
{facts}
</table>
{pictures}
<h2>Settings</h2>
<table>
{settings}
</table>
</body>
</html>
"""
