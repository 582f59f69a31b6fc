"""Measures a case round by round, until the interval of its median ratio lies on one side of the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.regression.judge import estimate

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.regression.cases import Case
    from benchmarks.regression.judge import Estimate
    from benchmarks.serving.networks import Network

# Processes differ from start to start (addresses, hash seeds): each pair is measured for a few rounds only.
_ROUNDS_PER_START = 4


def measure_case(
    case: Case,
    network: Network,
    *,
    cpu_s: float,
    planted_us: float = 0.0,
    is_enough: Callable[[Estimate], bool],
) -> Estimate:
    """Add rounds of about ``cpu_s`` CPU seconds per side until ``is_enough``.

    Raises:
        BenchError: a server ended, failed or answered wrongly.
    """
    ratios: list[float] = []
    while True:
        with case.opened(network, planted_us) as ratio:
            for _ in range(_ROUNDS_PER_START):
                ratios.append(ratio(cpu_s))
                found = estimate(ratios)
                if is_enough(found):
                    return found
