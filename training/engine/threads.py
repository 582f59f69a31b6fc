"""Finds by trial the number of threads that makes a training step fastest.

More threads are not always faster. In a small network they mostly wait for each other, and if other programs
use the CPUs they wait for a thread that is not running: an epoch of LeNet beside other busy processes took
1.3 to 5 times as long on two threads as on one (three pairs of runs).
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

# Enough that one hiccup of the machine does not decide; takes less than half a second for LeNet.
_TIMED_STEPS = 6
# A smaller count must take at most this fraction of the time: the machine may be less busy later.
_REQUIRED_SPEED_UP = 0.8


def set_fastest_thread_count(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Set the number of threads that makes a step of ``model`` on ``images`` fastest; return it and the most.

    Tries torch's current number, half of it, and so on down to 1. A copy of ``model`` takes the steps; if it
    cannot be copied, the number stays as it is.
    """
    most = torch.get_num_threads()
    try:
        trial = copy.deepcopy(model).train()
    except Exception:  # custom networks need not be copyable: those with torch.nn.utils.weight_norm are not
        return most, most

    def step() -> None:
        trial(images).sum().backward()

    with torch.random.fork_rng(devices=[]):  # so that dropout leaves the run's random state alone
        return fastest_thread_count(step, most), most


def fastest_thread_count(
    step: Callable[[], object], most: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """Set and return the number of threads that makes ``step`` fastest: ``most``, half of it, down to 1."""
    if most == 1:
        return 1
    best, best_s = most, float("inf")
    count = most
    while count >= 1:
        torch.set_num_threads(count)
        step()  # the first step starts threads and plans the convolutions
        started_s = clock()
        for _ in range(_TIMED_STEPS):
            step()
        taken_s = clock() - started_s
        if taken_s < _REQUIRED_SPEED_UP * best_s:
            best, best_s = count, taken_s
        count //= 2
    torch.set_num_threads(best)
    return best
