"""Building the network of a run, from the registry or a custom one, with its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.config import TrainConfig
from foldserve.training.engine.network import network_arguments
from foldserve.training.errors import ModelError
from foldserve.training.models import MODELS
from foldserve.training.recipes import RECIPES
from foldserve.training.run.train import train
from tests.training.conftest import LineTerminal

if TYPE_CHECKING:
    from pathlib import Path

    from foldserve.training.datasets import Dataset


def test_a_custom_network_is_trained_with_the_arguments_it_declares(
    tiny_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def make(in_channels, class_count):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 5), nn.BatchNorm2d(8), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, class_count))\n"
    )
    monkeypatch.chdir(tmp_path)
    arch = "my_nets:make"
    monkeypatch.setitem(MODELS, "lenet", MODELS["lenet"])  # what is registered here is undone with it
    config = TrainConfig(**tiny_config.model_dump() | {"arch": arch})
    assert train(config, LineTerminal()) == 0
    best = load_checkpoint(config.run_dir)
    assert best.arch == arch
    assert best.metrics["test_accuracy"] > 0.5
    MODELS.pop(arch)


def test_a_setting_that_the_network_lacks_is_named(tiny: Dataset):
    with pytest.raises(ModelError, match="lenet has no setting --width; leave it out"):
        network_arguments(TrainConfig(width=2.0), tiny)
    assert network_arguments(TrainConfig(arch="alexnet", width=0.5), tiny)["width_factor"] == 0.5


@pytest.mark.parametrize("arch", [*RECIPES, "package.module:factory"])
@pytest.mark.parametrize("recipe", ["default", "long"])
def test_recipes_set_the_settings_that_are_not_given(arch: str, recipe: str):
    config = TrainConfig(arch=arch, recipe=recipe)
    assert TrainConfig(**config.model_dump()).model_dump() == config.model_dump()
    assert TrainConfig(arch=arch, recipe=recipe, epochs=3, lr=0.7).lr == 0.7
    assert config.run_dir.name == arch.rpartition(":")[2]
    if recipe == "long":
        assert config.epochs > TrainConfig(arch=arch).epochs
