"""A time limit ends the run inside it and lets the rate fall to its end, at any speed, by a made clock."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from foldserve.training.config import TrainConfig
from foldserve.training.engine.schedule import Schedule
from foldserve.training.engine.time_budget import TimeBudget

STEPS_PER_EPOCH, EPOCHS = 50, 100
OFF_S = 10_000  # how long the machine was off


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def simulate(
    limit_s: float, step_s, evaluation_s: float = 2.0, interrupted_at: int = -1
) -> tuple[int, float, list[float]]:
    """Return steps, seconds, and the learning rates of a run whose step n takes ``step_s(n)``."""
    clock, config = Clock(), TrainConfig(epochs=EPOCHS, lr=1.0)

    def budget(spent_s: float, step: int) -> TimeBudget:
        made = TimeBudget(limit_s, spent_s, evaluated_images=100, test_images=200, clock=clock)
        made.mark(step)
        return made

    now, step, most = budget(0.0, 0), 0, STEPS_PER_EPOCH * EPOCHS
    planned, rates = most, []
    while step < planned:
        rates.append(Schedule(config, planned).learning_rate_at(step))
        clock.now_s += step_s(step)
        step += 1
        if step in (3, 10) or step % 20 == 0:
            planned = now.plan(step, STEPS_PER_EPOCH, 32, most)
        if step % STEPS_PER_EPOCH == 0 or step >= planned:
            clock.now_s += evaluation_s
            now.evaluated(evaluation_s)
            if step < planned:
                planned = now.plan(step, STEPS_PER_EPOCH, 32, most)
        if step == interrupted_at:
            spent_s = now.total_spent_s()
            clock.now_s += OFF_S
            now = budget(spent_s, step)
    off_s = OFF_S if interrupted_at >= 0 else 0
    return step, clock.now_s - off_s + 2 * evaluation_s, rates  # the test images are twice as many


@pytest.mark.parametrize(
    "step_s",
    [
        pytest.param(lambda _: 0.3, id="steady"),
        pytest.param(lambda step: 0.2 if step < 300 else 0.6, id="slower later"),
        pytest.param(lambda step: 3.0 if step < 2 else 0.2, id="a slow start"),
        pytest.param(lambda step: 0.2 + 0.2 * (step // 40 % 2), id="uneven"),
    ],
)
@pytest.mark.parametrize("interrupted_at", [-1, 137])
def test_the_schedule_ends_inside_the_limit(step_s, interrupted_at: int):
    steps, taken_s, rates = simulate(300.0, step_s, interrupted_at=interrupted_at)
    assert taken_s <= 300.0
    assert taken_s >= 0.75 * 300.0, "the time that was given is used"
    assert steps < STEPS_PER_EPOCH * EPOCHS
    assert rates[-1] < 0.02, "the rate has not fallen"
    assert max(rates) > 0.9, "the rate never rose"


def test_a_plan_counts_steps_evaluations_and_what_comes_last():
    """Of 125 s, 25 are spent on 20 steps and an evaluation of 5 s; the test has twice its images."""
    clock = Clock()
    budget = TimeBudget(125.0, evaluated_images=100, test_images=200, clock=clock)
    budget.mark(0)
    clock.now_s = 25.0
    budget.evaluated(5.0)
    spare_s = 0.05 * 125.0
    assert budget.plan(20, 10, 32, 10_000) == 20 + int((125 - 25 - spare_s - 10 - 5) / 1.5)
    assert budget.plan(20, 10, 32, 40) == 40


def test_enough_time_changes_nothing():
    steps, _, rates = simulate(1e9, lambda _: 0.3)
    assert steps == STEPS_PER_EPOCH * EPOCHS
    plain = Schedule(TrainConfig(epochs=EPOCHS, lr=1.0), steps)
    assert rates == [plain.learning_rate_at(step) for step in range(steps)]


def test_no_time_left_ends_after_the_next_step():
    steps, _, _ = simulate(1.0, lambda _: 2.0)
    assert steps <= 4


@pytest.mark.parametrize(
    ("given", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), (45, 45), ("45", 45)]
)
def test_times_are_read_with_their_units(given: object, seconds: float):
    assert TrainConfig.model_validate({"time_limit": given}).time_limit == seconds


@pytest.mark.parametrize("given", ["10x", "m", "-5m", "0", "10m5", "nan"])
def test_other_times_are_refused(given: str):
    with pytest.raises(ValueError, match="time_limit"):
        TrainConfig.model_validate({"time_limit": given})
