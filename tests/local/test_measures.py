"""The measures, against sums written down by hand and against definitions."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.artifact.calibration import ReliabilityBins
from foldserve.local.answers import Predictions
from foldserve.local.measures import Measures, Paired


def predictions(*rows: list[float]) -> Predictions:
    probabilities = np.array(rows, np.float32)
    return Predictions(tuple("abcdefgh"[: probabilities.shape[1]]), np.log(probabilities), probabilities)


def measured(rows: list[list[float]], truth: list[int], unknown: list[bool] | None = None) -> Measures:
    answers = predictions(*rows)
    measures = Measures(answers.names)
    flags = np.array(unknown or [False] * len(truth))
    measures.add(answers, np.array(truth), flags)
    return measures


SURE_A, SURE_B, SURE_C = [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]


def test_classes_are_measured_as_by_hand() -> None:
    measures = measured([SURE_A, SURE_A, SURE_B, SURE_B, SURE_B], [0, 1, 1, 1, 2])
    assert measures.accuracy == 3 / 5
    first, second, third = measures.classes()
    assert (first.precision, first.recall, first.f1) == (1 / 2, 1, 2 / 3)
    assert (second.precision, second.recall, second.f1) == (2 / 3, 2 / 3, 2 / 3)
    assert math.isnan(third.precision)
    assert (third.recall, third.f1, third.image_count) == (0, 0, 1)
    assert measures.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert measures.top_accuracy is None  # of three classes


def test_classes_that_do_not_occur_are_left_out_of_macro_f1() -> None:
    assert measured([SURE_A, SURE_B], [0, 1]).macro_f1 == 1


def test_top_five_counts_the_label_among_the_five_likeliest() -> None:
    row = [0.3, 0.2, 0.15, 0.13, 0.12, 0.1]
    measures = measured([row, row, row], [0, 4, 5])
    assert measures.accuracy == pytest.approx(1 / 3)
    assert measures.top_accuracy == pytest.approx(2 / 3)


def test_unknown_answers_are_mistakes_in_every_figure() -> None:
    """Misses of their class, and predictions of none, so that no other class has a false alarm."""
    measures = measured([SURE_A, SURE_A, SURE_B, SURE_A], [0, 0, 1, 1], [True, False, False, True])
    assert (measures.accuracy, measures.unknown_count) == (0.5, 2)
    first, second, third = measures.classes()
    assert (first.image_count, first.precision, first.recall, first.f1) == (2, 1, 1 / 2, 2 / 3)
    assert (second.image_count, second.precision, second.recall, second.f1) == (2, 1, 1 / 2, 2 / 3)
    assert math.isnan(third.f1)
    assert measures.macro_f1 == pytest.approx(2 / 3)
    assert measures.confusion == {(0, measures.unknown): 1, (0, 0): 1, (1, 1): 1, (1, measures.unknown): 1}


def test_nothing_is_right_if_every_answer_is_unknown() -> None:
    row = [0.3, 0.2, 0.15, 0.13, 0.12, 0.1]
    measures = measured([row, row], [0, 1], [True, True])
    assert (measures.accuracy, measures.top_accuracy, measures.macro_f1) == (0, 0, 0)
    certain = measured([row, row], [0, 1])
    assert measures.calibration_error == certain.calibration_error  # of the probabilities


def test_calibration_error_is_that_of_the_definition() -> None:
    """Two bins: 0.8 with 3 of 4 right, and 0.55 with none of 1 right."""
    rows = [SURE_A, SURE_A, SURE_B, SURE_C, [0.55, 0.25, 0.2]]
    measures = measured(rows, [0, 0, 1, 0, 1])
    assert measures.calibration_error == pytest.approx(4 / 5 * abs(0.75 - 0.8) + 1 / 5 * 0.55)


def test_batches_add_up() -> None:
    bins, together = ReliabilityBins(), ReliabilityBins()
    generator = np.random.default_rng(0)
    confidences, right = generator.random(100).astype(np.float32), generator.random(100) < 0.5
    together.add(confidences, right)
    for part in range(0, 100, 7):
        bins.add(confidences[part : part + 7], right[part : part + 7])
    assert bins.error == pytest.approx(together.error)
    bins.add(np.array([1.0], np.float32), np.array([True]))  # the last bin has its upper edge
    assert bins.counts.sum() == 101


@given(only_first=st.integers(0, 60), only_second=st.integers(0, 60))
def test_mcnemars_test_is_the_exact_binomial_one(only_first: int, only_second: int) -> None:
    paired = Paired()
    first = np.array([True] * only_first + [False] * only_second, bool)
    paired.add(np.append(first, [True, False]), np.append(~first, [True, False]))
    assert (paired.only_first, paired.only_second) == (only_first, only_second)
    count, fewer = only_first + only_second, min(only_first, only_second)
    exact = 2 * sum(comb(count, k) for k in range(fewer + 1)) / 2**count if count else 1
    assert paired.p_value == pytest.approx(min(1, exact))
