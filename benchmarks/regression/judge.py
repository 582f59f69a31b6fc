"""Decides from noisy ratios whether their median lies above a limit, and whether that can be told yet.

The interval of the median comes from order statistics: of n independent values, the median of their
distribution lies below the k-th smallest with the probability that fewer than k of n fair coins show heads
(David and Nagaraja, Order Statistics, 7.1). It needs no assumption about the noise. It is looked at after
each round, so that the chance of being wrong is above its 1 %: by some per cent if the truth lies next to the
limit, by next to nothing a tenth away from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from statistics import median
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Verdict = Literal["ok", "slower", "undecided"]

_CONFIDENCE = 0.99


@dataclass(frozen=True)
class Estimate:
    """The median of ``count`` ratios and the interval that holds the true one with 99 %."""

    ratio: float
    least: float
    most: float
    count: int

    @property
    def relative_width(self) -> float:
        """Half the interval's width over the ratio; infinite if there are too few values for one."""
        return (self.most - self.least) / 2 / self.ratio

    def __str__(self) -> str:
        """Return "ratio [least, most]"."""
        return f"{self.ratio:.3f} [{self.least:.3f}, {self.most:.3f}]"


def estimate(ratios: Sequence[float]) -> Estimate:
    """Return the median of ``ratios`` with its interval; below eight values that is endless."""
    ordered = sorted(ratios)
    count = len(ordered)
    outside = 0.0
    cut = 0  # values left out at each end
    while True:
        outside += 2 * comb(count, cut) / 2**count
        if outside > 1 - _CONFIDENCE:
            break
        cut += 1
    if not cut:
        return Estimate(median(ordered), 0.0, float("inf"), count)
    return Estimate(median(ordered), ordered[cut - 1], ordered[-cut], count)


def judge(found: Estimate, limit: float) -> Verdict:
    """Tell on which side of ``limit`` the whole interval lies."""
    if found.most <= limit:
        return "ok"
    return "slower" if found.least > limit else "undecided"
