"""Defines a mistake that a report shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Mistake:
    """One image that was labelled wrongly, as the network saw it: uint8 [C, H, W]."""

    name: str
    label: str
    prediction: str
    probability: float
    pixels: NDArray[np.uint8]
