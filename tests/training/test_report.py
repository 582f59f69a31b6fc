"""The pictures at the end show the right numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from training.pictures import confusion_matrix, draw_confusion_matrix, draw_curves

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_are_true_classes_and_columns_predicted_ones():
    counts = confusion_matrix(torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 0, 2]), 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("class_count", [2, 10, 20])
def test_a_confusion_matrix_is_drawn_also_with_a_class_that_never_occurs(tmp_path: Path, class_count: int):
    counts = torch.eye(class_count, dtype=torch.int64) * 50
    counts[0] = 0
    path = tmp_path / "matrix.png"
    draw_confusion_matrix(path, counts, [f"a rather long label {i}" for i in range(class_count)], "title")
    with Image.open(path) as image:
        assert min(image.size) > 500
        assert image.convert("L").getextrema()[0] < 60  # something dark: text and diagonal


@pytest.mark.parametrize("epochs", [1, 2, 50])
def test_curves_are_drawn_for_any_number_of_epochs(tmp_path: Path, epochs: int):
    history = [
        {
            "epoch": epoch,
            "lr": 0.1,
            "train_loss": 1 / epoch,
            "train_accuracy": 0.5,
            "validation_loss": 2 / epoch,
            "validation_accuracy": 1 - 1 / (1 + epoch),
        }
        for epoch in range(1, epochs + 1)
    ]
    draw_curves(tmp_path / "curves.png", history, "title")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 2 * image.height > 800
