"""Names the test images of a run, and finds those that its network is wrong about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from foldserve.training.datasets import Dataset
    from foldserve.training.engine.evaluation import Evaluation


@dataclass(frozen=True)
class Mistake:
    """A test image that was taken for another class: its name, both labels, and the answer's probability."""

    name: str
    label: str
    prediction: str
    probability: float


def name_of(dataset: Dataset, place: int) -> str:
    """Return the path of a test image within the data set, or its number in the split if it is no file."""
    return dataset.test_names[place] if dataset.test_names else f"test image {place}"


def worst_mistakes(test: Evaluation, targets: torch.Tensor, count: int) -> torch.Tensor:
    """Return indices int64 of at most ``count`` misclassified images, the most confident first."""
    wrong = torch.nonzero(test.predictions != targets).flatten()
    return wrong[test.confidences[wrong].argsort(descending=True, stable=True)][:count]


def mistakes_at(places: torch.Tensor, test: Evaluation, dataset: Dataset) -> list[Mistake]:
    """Return the mistakes at the indices ``places`` int64 [N]."""
    return [
        Mistake(
            name=name_of(dataset, place),
            label=dataset.labels[int(dataset.test_labels[place])],
            prediction=dataset.labels[int(test.predictions[place])],
            probability=float(test.confidences[place]),
        )
        for place in places.tolist()
    ]
