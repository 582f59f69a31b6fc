"""Learning rate and momentum of each step."""

from __future__ import annotations

import pytest
import torch

from foldserve.training.config import TrainConfig
from foldserve.training.engine.optimizer import create_optimizer
from foldserve.training.engine.schedule import Schedule


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("total_steps", [1, 2, 10, 1000])
def test_learning_rate_rises_to_its_peak_once_and_falls_towards_zero(
    total_steps: int, warmup: float, schedule: str
):
    config = TrainConfig(lr=0.3, warmup=warmup, schedule=schedule)
    schedule_of_run = Schedule(config, total_steps)
    rates = [schedule_of_run.learning_rate_at(step) for step in range(total_steps)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.3)
    assert all(rate > 0 for rate in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak == round(warmup * total_steps)
    if total_steps == 1000:
        assert rates[-1] < 1e-5


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_cycle_moves_momentum_against_the_rate_and_cosine_keeps_it(optimizer: str):
    network = torch.nn.Linear(2, 2)
    for schedule, expected in (("one-cycle", [0.95, 0.85, 0.95]), ("cosine", [0.9, 0.9, 0.9])):
        config = TrainConfig(optimizer=optimizer, schedule=schedule, warmup=0.25)
        built, momenta = create_optimizer(network, config), []
        for step in (0, 250, 999):
            Schedule(config, total_steps=1000).apply(built, step)
            group = built.param_groups[1]
            momenta.append(group["momentum"] if optimizer == "sgd" else group["betas"][0])
        assert momenta == pytest.approx(expected, abs=1e-5)
