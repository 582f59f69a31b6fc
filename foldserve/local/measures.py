"""Measures predictions against labels, from counts that are added up batch by batch.

accuracy, top-5     share of images whose label is the likeliest, or among the five likeliest
precision, recall   per class c: right / predicted as c, right / labelled c
F1                  2 precision recall / (precision + recall); macro-F1 is its mean over the classes that
                    occur as a label or a prediction, as in scikit-learn
calibration error   expected calibration error: sum over 15 equal bins of the highest probability of
                    share of images * |accuracy - mean probability| (Guo et al. 2017, arXiv:1706.04599)
McNemar's test      exact and two-sided: with b images that only one version has right and c that only the
                    other has, the probability of a split as uneven as b : c by chance alone (McNemar
                    1947, doi:10.1007/BF02295996)

An answer "unknown" is a miss of the label's class and a prediction of none: it is never right, nor among the
five likeliest. Only the calibration error, which is of the probabilities, is the same with and without it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from foldserve.artifact.calibration import ReliabilityBins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from foldserve.local.answers import Predictions


TOP = 5


@dataclass(frozen=True)
class ClassMeasure:
    """The measures of one class; NaN where nothing was predicted or labelled so."""

    label: str
    image_count: int
    precision: float
    recall: float
    f1: float


class Measures:
    """Adds up the predictions of one model.

    Attributes:
        count: images so far.
        unknown_count: images whose answer was "unknown", which count as mistakes.
        unknown: what stands for the answer "unknown" in ``confusion``: the number after those of the classes.
        confusion: number of images by (label, answer); pairs that do not occur are not held.
        reliability: the bins of the calibration error.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self.unknown = len(labels)
        self.count = self.unknown_count = 0
        self._top_right = 0
        self._right = 0
        self.confusion: Counter[tuple[int, int]] = Counter()
        self.reliability = ReliabilityBins()

    def add(
        self, predictions: Predictions, truth: NDArray[np.int64], unknown: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Add images with their labels ``truth`` [N]; return which were right.

        ``unknown`` [N] are those whose answer is "unknown".
        """
        ranked = predictions.ranked(TOP)
        likeliest = ranked[:, 0]
        answers = np.where(unknown, self.unknown, likeliest)
        is_right = answers == truth
        is_among_top = (ranked == truth[:, np.newaxis]).any(axis=1) & ~unknown
        self.count += len(truth)
        self.unknown_count += int(unknown.sum())
        self._right += int(is_right.sum())
        self._top_right += int(is_among_top.sum())
        self.confusion.update(zip(truth.tolist(), answers.tolist(), strict=True))
        self.reliability.add(predictions.confidences(), likeliest == truth)
        return np.asarray(is_right)

    @property
    def accuracy(self) -> float:
        """Share of images that are right; NaN without images."""
        return self._right / self.count if self.count else math.nan

    @property
    def top_accuracy(self) -> float | None:
        """Share of images whose label is among the five likeliest; None with five classes or fewer."""
        if len(self._labels) <= TOP:
            return None
        return self._top_right / self.count if self.count else math.nan

    @property
    def calibration_error(self) -> float:
        """The expected calibration error."""
        return self.reliability.error

    def classes(self) -> list[ClassMeasure]:
        """Return the measures of every class, in the model's order."""
        labelled: Counter[int] = Counter()
        predicted: Counter[int] = Counter()
        for (true, guess), count in self.confusion.items():
            labelled[true] += count
            predicted[guess] += count
        measures = []
        for index, label in enumerate(self._labels):
            right = self.confusion[index, index]
            either = labelled[index] + predicted[index]
            measures.append(
                ClassMeasure(
                    label=label,
                    image_count=labelled[index],
                    precision=right / predicted[index] if predicted[index] else math.nan,
                    recall=right / labelled[index] if labelled[index] else math.nan,
                    f1=2 * right / either if either else math.nan,
                )
            )
        return measures

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur; NaN without images."""
        values = [each.f1 for each in self.classes() if not math.isnan(each.f1)]
        return sum(values) / len(values) if values else math.nan


class Paired:
    """Counts the images that only one of two models has right.

    Attributes:
        only_first, only_second: those counts.
    """

    def __init__(self) -> None:
        self.only_first = self.only_second = 0

    def add(self, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> None:
        """Add images, by whether each model was right [N]."""
        self.only_first += int((first & ~second).sum())
        self.only_second += int((second & ~first).sum())

    @property
    def p_value(self) -> float:
        """Probability of so uneven a split, or more, if both models were equally good."""
        count = self.only_first + self.only_second
        fewer = min(self.only_first, self.only_second)
        if count == 0:
            return 1.0
        # 2 * sum of count! / (k! (count - k)!) / 2^count over k <= fewer; in logarithms nothing overflows.
        logs = [
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2)
            for k in range(fewer + 1)
        ]
        return min(1.0, 2 * math.fsum(map(math.exp, logs)))
