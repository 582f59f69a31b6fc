"""Plans how many steps fit into a time limit, so that the schedule ends inside it.

The plan is the step at which training ends. It is made anew every few steps from the speed so far, the time
that is left and what the end will take (a last evaluation and that of the test images). The learning rate
follows the plan, so that it falls to 0 in time instead of being cut off.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# The report's pictures and whatever else was not foreseen; a share of the limit, at most this much.
_SPARE_SHARE, _MOST_SPARE_S = 0.05, 15.0
# Before an evaluation was timed: an image takes about a third of the time that it takes in training.
_EVALUATION_SHARE = 1 / 3


@dataclass
class TimeBudget:
    """Time that a run may take over all its starts, and what its parts took so far, in seconds.

    ``spent_s`` is the time of earlier starts. ``evaluated_images`` is how many images an evaluation during
    training has, ``test_images`` those of the last one.
    """

    limit_s: float
    spent_s: float = 0.0
    evaluated_images: int = 0
    test_images: int = 0
    clock: Callable[[], float] = time.monotonic
    _started_s: float = field(init=False)
    _evaluation_s: float | None = field(init=False, default=None)
    _evaluations_s: float = field(init=False, default=0.0)
    _mark: tuple[int, float] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._started_s = self.clock()

    def total_spent_s(self) -> float:
        """Return the time that all starts have taken."""
        return self.spent_s + self.clock() - self._started_s

    def mark(self, step: int) -> None:
        """Begin to measure the speed at ``step``."""
        self._mark = (step, self.clock())
        self._evaluations_s = 0.0

    def evaluated(self, seconds: float) -> None:
        """Record what an evaluation took."""
        self._evaluation_s = seconds
        self._evaluations_s += seconds

    def plan(self, step: int, steps_per_epoch: int, batch_size: int, most_steps: int) -> int:
        """Return the step at which training should end, after ``step`` and at most at ``most_steps``."""
        if self._mark is None or step <= self._mark[0]:
            return most_steps
        began, began_s = self._mark
        step_s = max(0.0, self.clock() - began_s - self._evaluations_s) / (step - began)
        image_s = step_s / batch_size * _EVALUATION_SHARE
        evaluation_s = image_s * self.evaluated_images if self._evaluation_s is None else self._evaluation_s
        test_s = (
            image_s * self.test_images
            if self._evaluation_s is None
            else self._evaluation_s * self.test_images / max(1, self.evaluated_images)
        )
        spare_s = min(_SPARE_SHARE * self.limit_s, _MOST_SPARE_S)
        left_s = self.limit_s - self.total_spent_s() - spare_s - test_s - evaluation_s
        if left_s <= 0 or step_s <= 0:
            return min(most_steps, step + 1) if left_s <= 0 else most_steps
        # Each epoch on the way is evaluated too.
        cost_s = step_s + evaluation_s / steps_per_epoch
        return min(most_steps, step + max(1, int(left_s / cost_s)))
