"""What is said of the images that judge: how much they can tell, and networks that tell nothing."""

import numpy as np
import pytest

from foldserve.export.precision.judgement import drop_interval, interval_warning, network_warnings

LABELS = ("ant", "bee", "cat", "dog")


def outcomes(count: int, lost: int, gained: int):
    """Return which of ``count`` images are right before and after; ``lost`` only before."""
    before, after = np.ones(count, dtype=bool), np.ones(count, dtype=bool)
    after[:lost] = False
    before[lost : lost + gained] = False
    return before, after


def test_interval_is_that_of_agresti_and_min():
    low, high = drop_interval(*outcomes(98, lost=7, gained=2))
    # (7 - 2) / 100 -+ 1.959964 sqrt(7 + 2 + 1 - 25 / 100) / 100
    assert (low, high) == pytest.approx((5 - 6.11997, 5 + 6.11997), abs=1e-4)


def test_more_images_tell_more():
    widths = []
    for count in (20, 200, 2000, 20_000):
        low, high = drop_interval(*outcomes(count, lost=0, gained=0))
        assert low < 0 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 10
    assert widths[2] < 0.5


@pytest.mark.parametrize(
    ("count", "lost", "is_warned"),
    [
        pytest.param(40, 0, True, id="few images, nothing lost"),
        pytest.param(2000, 0, False, id="many images, nothing lost"),
        pytest.param(2000, 5, True, id="many images, about as much lost as allowed"),
        pytest.param(2000, 100, False, id="many images, clearly too much lost"),
        pytest.param(40, 30, False, id="few images, clearly too much lost"),
    ],
)
def test_too_few_images_are_told(count, lost, is_warned):
    warning = interval_warning(count, drop_interval(*outcomes(count, lost, 0)), 0.3)
    assert bool(warning) == is_warned
    if warning:
        assert f"{count:,} images are too few to tell a loss of 0.3 points" in warning
        assert "95 % interval" in warning


def warnings(predictions, classes, *, are_true=True):
    return network_warnings(np.array(predictions), np.array(classes), LABELS, are_true=are_true)


@pytest.mark.parametrize("are_true", [True, False])
def test_one_answer_for_all_images_is_told(are_true):
    (warning,) = warnings([2] * 40, [0, 1, 2, 3] * 10 if are_true else [2] * 40, are_true=are_true)
    assert "answers cat for all 40 images" in warning
    assert warnings([2] * 39 + [1], [2] * 39 + [1], are_true=are_true) == ()


def test_chance_is_told():
    random = np.random.default_rng(0)
    classes = np.arange(400) % 4
    (warning,) = warnings(random.integers(0, 4, 400), classes)
    assert "not clearly more than chance (25.00%)" in warning
    right = np.where(random.random(400) < 0.4, classes, random.integers(0, 4, 400))
    assert warnings(right, classes) == ()
    assert warnings(random.integers(0, 4, 400), classes, are_true=False) == ()  # classes would be its own


def test_the_most_common_class_is_chance():
    classes = np.array([0] * 90 + [1] * 10)
    mostly = classes.copy()
    mostly[:9] = 1
    mostly[90:] = 0
    (warning,) = warnings(mostly, classes)
    assert "81.00%" in warning
    assert "(90.00%)" in warning
    assert warnings(classes, classes) == ()
