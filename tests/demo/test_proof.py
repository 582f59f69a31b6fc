"""The comparison behind the table of the demo: differences that pass, and those that must not."""

from collections.abc import Callable

import numpy as np
import pytest

from foldserve.artifact.model_outputs import softmax
from foldserve.demo.proof import MAX_LOGIT_DIFFERENCE, compare, compare_all

LABELS = np.array([0, 1, 2, 0], np.int64)
REFERENCE = np.array([[9, 1, 0], [0, 8, 1], [1, 0, 7], [2, 6, 0]], np.float32)  # the last one is wrong


def changed(row: int, column: int, difference: float) -> np.ndarray:
    logits = REFERENCE.copy()
    logits[row, column] += difference
    return logits


def test_the_reference_agrees_with_itself() -> None:
    (row,) = compare_all(REFERENCE, [], LABELS)
    assert row.passed
    assert (row.correct, row.identical, row.count, row.max_difference) == (3, 4, 4, 0.0)
    assert row.accuracy == 0.75


def test_differences_within_the_tolerance_pass() -> None:
    assert compare("other", changed(0, 0, 0.9 * MAX_LOGIT_DIFFERENCE), None, REFERENCE, LABELS).passed


@pytest.mark.parametrize("difference", [2 * MAX_LOGIT_DIFFERENCE, -1.0, np.inf, -np.inf, np.nan])
def test_one_logit_too_far_fails(difference: float) -> None:
    with np.errstate(invalid="ignore"):
        assert not compare("other", changed(2, 1, difference), None, REFERENCE, LABELS).passed


def test_another_prediction_counts_only_where_the_reference_is_decided() -> None:
    close = REFERENCE.copy()
    close[0] = [9, 9 - MAX_LOGIT_DIFFERENCE / 2, 0]
    other = close.copy()
    other[0, :2] = close[0, 1], close[0, 0]
    row = compare("other", other, None, close, LABELS)
    assert (row.identical, row.undecided, row.passed) == (3, 1, True)


def test_another_decided_prediction_fails_even_if_the_tolerance_were_kept() -> None:
    """Rows swapped: the distribution of logits and even the accuracy may stay, the predictions do not."""
    row = compare("other", REFERENCE[[1, 0, 2, 3]], None, REFERENCE, LABELS)
    assert not row.passed
    assert row.identical == 2


@pytest.mark.parametrize(
    "change",
    [lambda rows: rows[::-1], lambda rows: -rows, lambda rows: rows * np.nan, lambda rows: rows + 1e-3],
    ids=["other images'", "negated", "NaN", "off by a thousandth"],
)
def test_probabilities_that_are_not_of_the_logits_fail(change: Callable[[np.ndarray], np.ndarray]) -> None:
    sound = softmax(REFERENCE).astype(np.float32)
    assert all(row.passed for row in compare_all(REFERENCE, [("other", REFERENCE, sound)], LABELS))
    _, row = compare_all(REFERENCE, [("other", REFERENCE, change(sound))], LABELS)
    assert not row.passed
    assert row.identical == 4
