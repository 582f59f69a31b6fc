"""Weight decay per parameter, and the average of the weights."""

from __future__ import annotations

import pytest
import torch

from foldserve.training.config import TrainConfig
from foldserve.training.engine.ema import WeightAverage
from foldserve.training.engine.optimizer import create_optimizer
from foldserve.training.models import create_model


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_spares_biases_and_batch_norm(optimizer: str):
    network = create_model("lenet", in_channels=1, class_count=10, height=28, width=28)
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = create_optimizer(network, TrainConfig(optimizer=optimizer)).param_groups
    decayed = {names[p] for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {names[p] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert decayed == {name for name in names.values() if name.endswith("weight") and "norm" not in name}
    assert decayed | spared == set(names.values())


def test_average_follows_its_formula_with_batch_norm_statistics():
    network = torch.nn.BatchNorm1d(3)
    average = WeightAverage(network, decay=0.9)
    expected = {name: value.clone().double() for name, value in network.state_dict().items()}
    for step in range(40):
        with torch.no_grad():
            network.weight += 0.5
            network.running_mean += 1.0
            network.num_batches_tracked += 1
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name in ("weight", "running_mean"):
            expected[name] += (1 - decay) * (network.state_dict()[name].double() - expected[name])
    for name in ("weight", "running_mean"):
        # 40 float32 steps on values up to 40: 40 * 40 * 2^-24.
        torch.testing.assert_close(average.weights[name].double(), expected[name], rtol=0, atol=1e-4)
    assert average.weights["num_batches_tracked"] == 40
    assert average.weights["weight"].data_ptr() != network.weight.data_ptr()
