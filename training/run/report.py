"""Writes the report of a finished run: pictures, a page, the predictions, and sample images.

The page has its pictures inside, so it can be mailed.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from foldserve.replacing import write_replacing
from foldserve.text import escape_controls
from foldserve.training.run.fonts import fonts_for
from foldserve.training.run.mistakes import mistakes_at, name_of, worst_mistakes
from foldserve.training.run.pictures import (
    confusion_matrix,
    draw_class_accuracies,
    draw_confusion_matrix,
    draw_curves,
    draw_images,
    shown,
)
from foldserve.training.run.report_page import make_page
from foldserve.training.run.samples import SAMPLES_FOLDER, write_samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from foldserve.training.checkpoint import Checkpoint
    from foldserve.training.config import TrainConfig
    from foldserve.training.datasets import Dataset
    from foldserve.training.engine.evaluation import Evaluation
    from foldserve.training.run.mistakes import Mistake

PAGE_FILE = "report.html"
CURVES_FILE = "curves.png"
CONFUSION_FILE = "confusion_matrix.png"
CLASSES_FILE = "class_accuracies.png"
MISTAKES_FILE = "mistakes.png"
PREDICTIONS_FILE = "predictions.csv"

_PICTURES = {
    "Learning curves": CURVES_FILE,
    "Confusion matrix": CONFUSION_FILE,
    "Accuracy per class": CLASSES_FILE,
    "Most confident mistakes": MISTAKES_FILE,
}
_MISTAKE_COUNT = 32
_NAME_CHARACTERS = 22  # what fits above a picture


def write_report(
    folder: Path,
    *,
    best: Checkpoint,
    history: Sequence[dict[str, Any]],
    test: Evaluation,
    dataset: Dataset,
    config: TrainConfig,
) -> None:
    """Write the files of the report of ``history`` and ``test`` into ``folder``.

    They are pictures, a page that shows them, the prediction for each test image, and sample images for a try
    of the served model.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    counts = confusion_matrix(dataset.test_labels, test.predictions, len(dataset.labels))
    name = dataset.short_name
    title = f"{shown(name)}: {test.accuracy:.2%} of {len(dataset.test_labels):,} test images"
    worst = worst_mistakes(test, dataset.test_labels, _MISTAKE_COUNT)
    mistakes = mistakes_at(worst, test, dataset)
    with fonts_for([*dataset.labels, name, *(each.name for each in mistakes)]):
        draw_curves(folder / CURVES_FILE, history, shown(name), best.metrics.get("epoch"))
        draw_confusion_matrix(folder / CONFUSION_FILE, counts, dataset.labels, title)
        draw_class_accuracies(folder / CLASSES_FILE, counts, dataset.labels, title)
        draw_mistakes(
            folder / MISTAKES_FILE, dataset.test_images[worst], mistakes, _wrong_count(test, dataset)
        )
    write_predictions(folder / PREDICTIONS_FILE, test, dataset)
    write_samples(folder / SAMPLES_FOLDER, dataset)
    page = make_page(
        best,
        name=name,
        history=history,
        config=config,
        pictures={caption: folder / file for caption, file in _PICTURES.items()},
        mistakes=mistakes if dataset.test_names else [],
    )
    # The name of a run folder need not be UTF-8.
    write_replacing(folder / PAGE_FILE, page.encode(errors="backslashreplace"))


def write_predictions(path: Path, test: Evaluation, dataset: Dataset) -> None:
    """Write a row per test image into the CSV ``path``, with the columns that `foldserve evaluate` writes.

    An image that is no file has its number in the test split, from 0, instead of a path.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["path", "label", "prediction", "probability", "right"])
    columns = (dataset.test_labels.tolist(), test.predictions.tolist(), test.confidences.tolist())
    for place, (target, prediction, confidence) in enumerate(zip(*columns, strict=True)):
        row = (dataset.labels[target], dataset.labels[prediction], f"{confidence:.6f}")
        rows.writerow([name_of(dataset, place), *row, int(target == prediction)])
    write_replacing(path, text.getvalue().encode(errors="backslashreplace"))


def draw_mistakes(path: Path, images: Tensor, mistakes: Sequence[Mistake], count: int) -> None:
    """Draw the ``mistakes`` of ``count`` in all into ``path``, with both classes and the file's name.

    ``images`` are theirs, uint8 [N, C, H, W].
    """
    captions = [
        f"{shown(each.label, 14)}, predicted\n{shown(each.prediction, 14)} {each.probability:.0%}\n"
        f"{_shown_end(each.name)}"
        for each in mistakes
    ]
    title = f"the {len(mistakes)} most confident of {count:,} mistakes" if count else "no mistakes"
    draw_images(path, images, captions, title)


def _wrong_count(test: Evaluation, dataset: Dataset) -> int:
    return int((test.predictions != dataset.test_labels).sum())


def _shown_end(name: str) -> str:
    """Return the end of a file's name for a picture: the folders in front matter least."""
    end = name if len(name) <= _NAME_CHARACTERS else f"…{name[1 - _NAME_CHARACTERS :]}"
    return shown(escape_controls(end), len(end))
