"""Values of classes -> the highest of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def top_indices(values: NDArray[np.float32], top_k: int) -> list[int]:
    """Return the indices of up to ``top_k`` highest of ``values`` [K], the highest first, equals in order."""
    order: list[int] = np.argsort(-values, kind="stable")[:top_k].tolist()
    return order
