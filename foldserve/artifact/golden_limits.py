"""Limits golden pairs: the type and dimensions of each array, and the largest tolerances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# Largest tolerance for the trained model's logits that an export writes, in fp32 and in any precision: a
# floor, and a fraction of the largest logit (see export/verification/tolerances.py). A deep network's logits
# in float32 are themselves uncertain by some 1e-5 of the largest. A file that is off by a tenth of its
# largest logit is not the network that was trained.
_MAX_FP32 = (1e-4, 4e-4)
_MAX_ANY = (1e-3, 0.1)


def max_tolerance(logits: NDArray[np.float32], precision: str = "") -> float:
    """Return the largest allowed reference tolerance for ``logits`` [G, K]; "" is any precision."""
    floor, fraction = _MAX_FP32 if precision == "fp32" else _MAX_ANY
    return max(floor, fraction * float(np.abs(logits).max(initial=0.0)))


def golden_array(
    arrays: Mapping[str, Any], name: str, dtype: type[np.generic], dimensions: int
) -> NDArray[Any]:
    """Return an array of ``golden.npz``, with its type and number of dimensions checked.

    Raises:
        ArtifactError: it has another type or number of dimensions, or is not an array.
        KeyError: there is no array of this name.
    """
    array = arrays[name]
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != dimensions:
        kind = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "not an array"
        raise ArtifactError(
            f"golden.npz: {name} is {kind}; expected {np.dtype(dtype).name} with {dimensions} dimensions"
        )
    return array
