"""Finds the classes with the highest values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def top_indices(values: NDArray[np.float32], top_k: int) -> list[int]:
    """Return the indices of the ``top_k`` highest of ``values`` [K], highest first, ties in index order."""
    order: list[int] = np.argsort(-values, kind="stable")[:top_k].tolist()
    return order
