"""Weights of the classes: balanced by count, or from a file that gives each class a weight."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from foldserve.training.engine.class_weights import class_weights
from foldserve.training.errors import RunError

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("cat", "dog", "ox")
TARGETS = torch.tensor([0] * 6 + [1] * 3 + [2])


def test_balanced_weights_give_each_class_the_same_sum():
    weights = class_weights("balanced", LABELS, TARGETS)
    sums = weights * torch.bincount(TARGETS)
    assert torch.allclose(sums, torch.full((3,), 10 / 3))
    assert weights[TARGETS].mean().item() == pytest.approx(1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_weights_of_a_file_keep_their_ratios_and_have_a_mean_of_one(tmp_path: Path, encoding: str):
    (tmp_path / "w.json").write_text(json.dumps({"ox": 3, "cat": 1.0, "dog": 1.5}), encoding=encoding)
    weights = class_weights(str(tmp_path / "w.json"), LABELS, TARGETS)
    assert (weights / weights[0]).tolist() == pytest.approx([1, 1.5, 3])
    assert weights[TARGETS].mean().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"cat": 1, "dog": 1, "ox": 1, "cow": 2}',
            "names 'cow', which the data set does not have; its classes",
        ),
        ('{"cat": 1, "dog": 1}', "has no weight for 'ox'; give every class one"),
        ('{"cat": 1, "dog": 0, "ox": 1}', "gives 'dog' the weight 0; expected a number above 0"),
        ('{"cat": 1, "dog": NaN, "ox": 1}', "gives 'dog' the weight nan; expected a number above 0"),
        ('{"cat": 1, "dog": true, "ox": 1}', "gives 'dog' the weight True; expected"),
        ("[1, 2, 3]", "holds a list; expected"),
        ("cat 1", "is not JSON"),
        (None, r"cannot be read: No such file or directory; expected balanced, or a JSON file"),
    ],
)
def test_files_without_a_weight_for_each_class_are_refused(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "w.json").write_text(text)
    with pytest.raises(RunError, match=message):
        class_weights(str(tmp_path / "w.json"), LABELS, TARGETS)
