"""Frozen layers keep their weights and statistics; patterns that do not fit are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foldserve.training.engine.freezing import Frozen, freeze
from foldserve.training.errors import ModelError


def network() -> nn.Sequential:
    def block(inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, 4, 1), nn.BatchNorm2d(4), nn.Dropout())

    return nn.Sequential(block(1), block(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        pytest.param(
            ["0"], ["0.0.bias", "0.0.weight", "0.1.bias", "0.1.weight"], id="a layer with all in it"
        ),
        pytest.param(["*.1"], ["0.1.bias", "0.1.weight", "1.1.bias", "1.1.weight"], id="a pattern"),
        pytest.param(["0.0.weight", "1.0"], ["0.0.weight", "1.0.bias", "1.0.weight"], id="several"),
        pytest.param([], [], id="none"),
    ],
)
def test_what_matches_is_frozen_and_nothing_else(patterns: list[str], frozen: list[str]):
    model = network()
    assert sorted(freeze(model, patterns).parameters) == frozen
    assert sorted(n for n, p in model.named_parameters() if not p.requires_grad) == frozen


def test_frozen_batch_norm_keeps_its_statistics_in_training():
    model = network()
    frozen = freeze(model, ["0"])
    for keep in (frozen, Frozen()):  # the second one shows that the check can fail
        model.train()
        keep.keep_in_evaluation()
        before = [norm.running_mean.clone() for norm in (model[0][1], model[1][1])]
        model(torch.randn(8, 1, 1, 1) + 3)
        first, second = (norm.running_mean for norm in (model[0][1], model[1][1]))
        assert torch.equal(first, before[0]) == (keep is frozen)
        assert not torch.equal(second, before[1])
        assert model[0][2].training, "dropout of a frozen layer still drops"


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["stem"], r"--freeze stem matches no weight of the network; its parts are 0, 1, 2, 3"),
        (["0", "features.*"], r"--freeze features\.\* matches no weight"),
        (["*"], r"leaves nothing to train"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(patterns: list[str], message: str):
    with pytest.raises(ModelError, match=message):
        freeze(network(), patterns)
