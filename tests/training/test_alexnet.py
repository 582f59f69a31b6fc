"""AlexNet's two layouts: shapes, parameter counts, and arguments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foldserve.training.errors import ModelError
from foldserve.training.models import AlexNet, create_model

FASHION = {"in_channels": 1, "class_count": 10, "height": 28, "width": 28}
IMAGENET = {"in_channels": 3, "class_count": 1000, "height": 224, "width": 224}


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def test_the_small_layout_has_the_parameters_of_its_table_and_at_most_a_million_and_a_half():
    weights = 25 * 24 + 9 * (24 * 64 + 64 * 128 + 128 * 128 + 128 * 128)
    batch_norm = 2 * (24 + 64 + 128 + 128 + 128)  # gamma and beta
    linear = (128 * 2 * 2 * 256 + 256) + (256 * 256 + 256) + (256 * 10 + 10)
    assert parameter_count(create_model("alexnet", **FASHION)) == weights + batch_norm + linear <= 1_500_000


def test_the_large_layout_has_the_parameters_of_its_table():
    with torch.device("meta"):  # 240 MB of weights that nobody looks at
        network = create_model("alexnet", **IMAGENET)
    weights = 121 * 3 * 64 + 25 * 64 * 192 + 9 * (192 * 384 + 384 * 256 + 256 * 256)
    batch_norm = 2 * (64 + 192 + 384 + 256 + 256)
    linear = (256 * 6 * 6 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 1000 + 1000)
    assert parameter_count(network) == weights + batch_norm + linear


@pytest.mark.parametrize(
    ("height", "width", "first_stride"),
    [
        pytest.param(28, 28, 1, id="smallest"),
        pytest.param(32, 32, 1, id="CIFAR"),
        pytest.param(31, 45, 1, id="odd sides"),
        pytest.param(64, 200, 1, id="shorter side still small"),
        pytest.param(65, 65, 4, id="first of ImageNet's layout"),
        pytest.param(224, 224, 4, id="ImageNet"),
        pytest.param(225, 117, 4, id="large odd sides"),
    ],
)
def test_the_shorter_side_chooses_the_layout_and_each_size_gives_one_logit_per_class(
    height: int, width: int, first_stride: int
):
    network = AlexNet(in_channels=3, class_count=7, height=height, width=width, width_factor=0.05).eval()
    assert network(torch.zeros(2, 3, height, width)).shape == (2, 7)
    assert convolutions(network)[0].stride == (first_stride, first_stride)


def test_the_maps_of_the_large_layout_are_the_papers():
    with torch.device("meta"):
        network = AlexNet(**IMAGENET).eval()
        maps, sides = torch.zeros(1, 3, 224, 224), []
        for layer in network.features:
            maps = layer(maps)
            sides.append(tuple(maps.shape[1:]))
    assert sides[1] == (64, 27, 27)
    assert sides[3] == (192, 13, 13)
    assert sides[-1] == (256, 6, 6)


def test_width_scales_all_channels_and_hidden_features():
    network = AlexNet(**FASHION, width_factor=0.5)
    assert [layer.out_channels for layer in convolutions(network)] == [12, 32, 64, 64, 64]
    linear = [module.out_features for module in network.modules() if isinstance(module, nn.Linear)]
    assert linear == [128, 128, 10]


def test_without_batch_norm_there_is_none_and_convolutions_have_a_bias():
    network = AlexNet(**FASHION, batch_norm=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert all(layer.bias is not None for layer in convolutions(network))
    assert all(layer.bias is None for layer in convolutions(AlexNet(**FASHION)))


def test_sigmoid_replaces_all_seven_activations():
    network = AlexNet(**FASHION, activation="sigmoid")
    assert sum(isinstance(module, nn.Sigmoid) for module in network.modules()) == 7
    assert not any(isinstance(module, nn.ReLU) for module in network.modules())


def test_dropout_is_before_both_hidden_layers_and_acts_only_in_training():
    torch.manual_seed(0)
    network = AlexNet(**FASHION, batch_norm=False, width_factor=0.25)
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.5, 0.5]
    images = torch.randn(4, 1, 28, 28)
    assert not torch.equal(network.train()(images), network(images))
    assert torch.equal(network.eval()(images), network(images))


def test_dropout_of_zero_leaves_training_repeatable():
    torch.manual_seed(0)
    network = AlexNet(**FASHION, batch_norm=False, dropout=0.0, width_factor=0.25).train()
    images = torch.randn(4, 1, 28, 28)
    assert torch.equal(network(images), network(images))


def test_batch_norm_follows_the_batch_in_training_and_not_in_evaluation():
    torch.manual_seed(0)
    network = AlexNet(**FASHION, dropout=0.0, width_factor=0.25)
    image, neighbours = torch.randn(1, 1, 28, 28), torch.randn(3, 1, 28, 28) * 4
    batch = torch.cat([image, neighbours])
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 5
    trained = network.train()(batch)[:1]
    assert all(norm.num_batches_tracked == 1 and norm.running_mean.any() for norm in norms)
    # In evaluation the neighbours do not matter; 1e-5 is what another order of summing may cost.
    network.eval()
    torch.testing.assert_close(network(batch)[:1], network(image), rtol=0, atol=1e-5)
    assert not torch.allclose(network(batch)[:1], trained, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"height": 27}, "not 27x28", id="too small"),
        pytest.param({"dropout": 1.0}, "dropout is 1.0", id="dropout of 1"),
        pytest.param({"width_factor": 0.0}, "width factor is 0.0", id="no width"),
        pytest.param({"width_factor": float("nan")}, "width factor is nan", id="width that is not a number"),
        pytest.param({"activation": "gelu"}, "relu, sigmoid", id="unknown activation"),
    ],
)
def test_invalid_network_arguments_are_refused(arguments: dict, message: str):
    with pytest.raises(ModelError, match=message):
        AlexNet(**FASHION | arguments)
