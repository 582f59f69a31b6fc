"""A server takes whatever tolerance an export writes: the bound it has is that of the widest precision."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foldserve.artifact.format import Golden
from foldserve.artifact.golden_limits import max_tolerance
from foldserve.errors import ArtifactError
from foldserve.export.verification.tolerances import (
    agreement_tolerance,
    fp16_tolerance,
    golden_tolerance,
    int8_tolerance,
    reference_tolerance,
)

LOGITS = arrays(
    np.float32, (4, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
)


@given(logits=LOGITS, measured=st.floats(0, 1e30))
def test_tolerances_of_an_export_are_within_the_artifacts_bounds(logits, measured: float):
    assert reference_tolerance(logits) <= max_tolerance(logits, "fp32")
    assert fp16_tolerance(logits) <= max_tolerance(logits, "fp16")
    assert int8_tolerance(logits, measured) <= max_tolerance(logits, "int8")


@given(logits=LOGITS, rounding=st.floats(0, 1e30))
def test_fp32_tolerances_of_an_export_are_within_the_artifacts_bounds(logits, rounding: float):
    assert agreement_tolerance(logits, rounding) <= max_tolerance(logits, "fp32")
    assert reference_tolerance(logits) <= golden_tolerance(logits, rounding) <= max_tolerance(logits, "fp32")


@given(logits=LOGITS)
def test_fp32_tolerance_is_accepted_up_to_its_bound(logits):
    golden = Golden(
        images=np.zeros((4, 1, 2, 2), np.uint8),
        reference_logits=logits,
        runtime_logits=logits,
        reference_tolerance=golden_tolerance(logits, 1e38),  # rounding as large as the logits
        runtime_tolerance=1e-5,
        synthetic=True,
    )
    golden.check("fp32")
    wider = dataclasses.replace(golden, reference_tolerance=golden.reference_tolerance * 1.01)
    with pytest.raises(ArtifactError, match="in fp32 the first must be"):
        wider.check("fp32")
    wider.check("int8")
