"""Compares answers with labels, some images at a time."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from foldserve.errors import ImageError
from foldserve.local.answers import is_unknown
from foldserve.local.measures import Measures, Paired
from foldserve.local.mistakes import Mistake
from foldserve.tables.errors import DataError
from foldserve.text import escape_controls, join_first, legible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from foldserve.local.answers import Answered
    from foldserve.local.label_names import LabelIndex
    from foldserve.local.local_model import LocalModel
    from foldserve.tables.items import Item

    # Path, label, answer, its probability, and 1 if it is right.
    _Row = tuple[str, str, str, float, int]

_BROKEN_SHOWN = 20


def with_classes(items: Iterable[Item], index: LabelIndex) -> Iterator[Item]:
    """Yield the items with the class of their label, or with the error that it has none."""
    for item in items:
        try:
            yield item if item.error else replace(item, label=index.find(item.label))
        except ImageError as error:
            yield replace(item, error=str(error))


class Judgement:
    """What is known of one model, or of two on the same images.

    Attributes:
        measures: those of each model.
        paired: the comparison of two models.
        broken: the first images that cannot be used, with the reason.
        broken_count: how many those are in all.
    """

    def __init__(self, models: Sequence[LocalModel], *, min_confidence: float, worst_count: int) -> None:
        """Begin without images.

        Raises:
            DataError: two models have different labels.
        """
        first = models[0].labels
        for model in models[1:]:
            if set(model.labels) != set(first):
                differ = [legible(label) for label in sorted(set(model.labels) ^ set(first))]
                raise DataError(
                    f"{model.path} has other labels than {models[0].path} ({join_first(differ)}); only "
                    "versions with the same labels can be compared"
                )
        # The place of each of the first model's classes among the classes of each model.
        self._places = [np.array([model.labels.index(label) for label in first]) for model in models]
        self._labels = first
        self._min_confidence = min_confidence
        self._worst_count = worst_count
        self._worst: list[tuple[float, int, Mistake]] = []  # a heap, the least wrong first
        self.measures = [Measures(model.labels) for model in models]
        self.paired = Paired()
        self.broken: list[str] = []
        self.broken_count = 0

    def add(self, answered: Answered) -> list[_Row]:
        """Add images whose labels are classes of the first model.

        Returns:
            For each that could be used: path, label, the first model's answer, its probability, 1 if right.
        """
        known = self._without_broken(answered)
        if not known:
            return []
        truth = np.array([item.label for item in known], np.int64)
        right = []
        for places, measures, predictions in zip(
            self._places, self.measures, answered.predictions, strict=True
        ):
            unknown = is_unknown(predictions.confidences(), self._min_confidence)
            right.append(measures.add(predictions, places[truth], unknown))
        for other in right[1:]:
            self.paired.add(right[0], other)
        first = answered.predictions[0]
        columns = (
            [item.name for item in known],
            [self._labels[true] for true in truth.tolist()],
            first.labels(self._min_confidence),
            first.confidences().tolist(),
            [int(is_right) for is_right in right[0].tolist()],
        )
        rows = list(zip(*columns, strict=True))
        self._keep_worst(rows, answered)
        return rows

    @property
    def image_count(self) -> int:
        """Images that could be used."""
        return self.measures[0].count

    def worst(self) -> list[Mistake]:
        """Return the mistakes with the highest probability for a wrong label, the worst first."""
        ordered = sorted(self._worst, key=lambda entry: entry[:2], reverse=True)
        return [mistake for *_, mistake in ordered]

    def _without_broken(self, answered: Answered) -> list[Item]:
        known = []
        for item, error in zip(answered.items, answered.errors, strict=True):
            if not error:
                known.append(item)
                continue
            self.broken_count += 1
            if len(self.broken) < _BROKEN_SHOWN:
                where = f"{item.where} ({item.name})" if item.where not in {"", item.name} else item.name
                self.broken.append(escape_controls(f"{where}: {error}"))
        return known

    def _keep_worst(self, rows: Sequence[_Row], answered: Answered) -> None:
        """Keep the worst mistakes of the first model; of equal ones the earlier."""
        if not self._worst_count:
            return
        before = self.image_count - len(rows)
        for place, (name, label, answer, probability, is_right) in enumerate(rows):
            key = (probability, -(before + place))
            if is_right or (len(self._worst) == self._worst_count and key < self._worst[0][:2]):
                continue
            mistake = Mistake(name, label, answer, probability, answered.images[place].copy())
            heapq.heappush(self._worst, (*key, mistake))
            if len(self._worst) > self._worst_count:
                heapq.heappop(self._worst)
