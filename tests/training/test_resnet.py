"""The residual network: shapes, parameter counts, shortcuts, and arguments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foldserve.training.errors import ModelError
from foldserve.training.models import ResNet, create_model
from foldserve.training.models.resnet import ResidualBlock

FASHION = {"in_channels": 1, "class_count": 10, "height": 28, "width": 28}


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("blocks_a_stage", [1, 2, 3])
def test_the_parameters_are_those_of_the_paper_with_projections(blocks_a_stage: int):
    expected = 9 * 16 + 2 * 16
    for before, after in [(16, 16), (16, 32), (32, 64)]:
        first = 9 * before * after + 9 * after * after + 2 * 2 * after
        projection = before * after + 2 * after if before != after else 0
        rest = (blocks_a_stage - 1) * (2 * 9 * after * after + 2 * 2 * after)
        expected += first + projection + rest
    expected += 64 * 10 + 10
    assert parameter_count(create_model("resnet", **FASHION, depth=6 * blocks_a_stage + 2)) == expected


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_depth_counts_the_weighted_layers_except_shortcuts(depth: int):
    network = ResNet(**FASHION, depth=depth)
    weighted = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(weighted) == depth


@pytest.mark.parametrize(
    ("height", "width", "last_map"),
    [
        pytest.param(28, 28, (7, 7), id="Fashion-MNIST"),
        pytest.param(32, 32, (8, 8), id="CIFAR"),
        pytest.param(31, 45, (8, 12), id="odd sides"),
        pytest.param(64, 64, (16, 16), id="last of the small stem"),
        pytest.param(65, 65, (5, 5), id="first of ImageNet's stem"),
        pytest.param(224, 224, (14, 14), id="ImageNet"),
    ],
)
def test_resnet_gives_one_logit_per_class_at_any_size(height: int, width: int, last_map: tuple[int, int]):
    network = ResNet(in_channels=3, class_count=7, height=height, width=width, depth=8, width_factor=0.25)
    images = torch.zeros(2, 3, height, width)
    network.eval()
    assert network(images).shape == (2, 7)
    maps = network.stage3(network.stage2(network.stage1(network.stem(images))))
    assert maps.shape[2:] == last_map


def test_the_shortcut_is_the_identity_if_the_shape_stays_else_a_strided_projection():
    network = ResNet(**FASHION, depth=14)
    assert isinstance(network.stage1[0].shortcut, nn.Identity)
    assert isinstance(network.stage2[1].shortcut, nn.Identity)
    projection = network.stage2[0].shortcut.conv
    assert (projection.kernel_size, projection.stride) == ((1, 1), (2, 2))


def test_a_block_whose_branch_is_zero_returns_its_input():
    block = ResidualBlock(4, 4, stride=1, batch_norm=True, activation="relu").eval()
    nn.init.zeros_(block.block2.norm.weight)
    maps = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(maps), maps)
    nn.init.ones_(block.block2.norm.weight)
    assert not torch.equal(block(maps), maps)


def test_the_activation_comes_after_the_sum():
    """A branch activated before the sum could never lower a value."""
    block = ResidualBlock(4, 4, stride=1, batch_norm=True, activation="relu").eval()
    nn.init.zeros_(block.block2.norm.weight)
    nn.init.constant_(block.block2.norm.bias, -0.25)
    maps = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(block(maps), (maps - 0.25).relu(), rtol=0, atol=1e-6)


def test_batch_norm_and_activation_arguments_apply_to_all_layers():
    plain = ResNet(**FASHION, depth=8, batch_norm=False, activation="sigmoid", dropout=0.3)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.ReLU) for module in plain.modules())
    assert sum(isinstance(module, nn.Sigmoid) for module in plain.modules()) == 1 + 3 * 2
    assert all(module.bias is not None for module in plain.modules() if isinstance(module, nn.Conv2d))
    assert [module.p for module in plain.modules() if isinstance(module, nn.Dropout)] == [0.3]
    assert all(module.bias is None for module in ResNet(**FASHION).modules() if isinstance(module, nn.Conv2d))


def test_batch_norm_follows_the_batch_in_training_and_not_in_evaluation():
    torch.manual_seed(0)
    network = ResNet(**FASHION, depth=8, width_factor=0.5)
    batch = torch.cat([torch.randn(1, 1, 28, 28), torch.randn(3, 1, 28, 28) * 4])
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 1 + 3 * 2 + 2
    trained = network.train()(batch)[:1]
    assert all(norm.num_batches_tracked == 1 and norm.running_mean.any() for norm in norms)
    network.eval()
    # 1e-5 is what another order of summing may cost.
    torch.testing.assert_close(network(batch)[:1], network(batch[:1]), rtol=0, atol=1e-5)
    assert not torch.allclose(network(batch)[:1], trained, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"height": 7}, "not 7x28", id="too small"),
        pytest.param({"depth": 18}, "depth is 18; expected one of 8, 14", id="depth between two"),
        pytest.param({"dropout": -0.1}, "dropout is -0.1", id="negative dropout"),
        pytest.param({"width_factor": -1.0}, "width factor is -1.0", id="negative width"),
    ],
)
def test_invalid_network_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ModelError, match=message):
        ResNet(**FASHION | arguments)
