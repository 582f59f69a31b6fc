"""Checks what an export prints about its verification."""

import numpy as np
import pytest
from rich.console import Console

from foldserve.export.report import Report
from foldserve.export.sources.load import VerificationImages
from foldserve.export.verification.agreement import Agreement


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        pytest.param(50, "50 images: 100.00% the same predictions (CPU)", id="all"),
        pytest.param(48, "50 images: 100.00% the same predictions (2 too close to tell) (CPU)", id="some"),
        pytest.param(0, "50 images: no prediction is clear enough to compare", id="none"),
    ],
)
def test_predictions_that_were_not_compared_are_not_claimed(compared, said, capsys):
    images = VerificationImages(np.zeros((50, 1, 8, 8), np.uint8), None, synthetic=False, origin="images")
    agreement = Agreement("CPU", 50, None, None, compared, 1.0, 0.0, 1e-4)
    Report(Console(width=200)).agreed([agreement], images)
    printed = capsys.readouterr().out
    assert said in printed
    assert ("100.00%" in printed) == bool(compared)
