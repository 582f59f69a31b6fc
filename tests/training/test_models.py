"""The layers of the networks, and their behaviour in training and in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foldserve.training.errors import ModelError
from foldserve.training.models import ConvBlock, LeNet, Normalized, create_model

FASHION = {"in_channels": 1, "class_count": 10, "height": 28, "width": 28}


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_lenet_has_the_parameters_of_its_table_and_under_100k():
    # C1 400, C3 12,800, C5 67,200, F6 7,056 + 84, out 840 + 10; gamma and beta for 16 + 32 + 84 maps.
    expected = 400 + 12_800 + 67_200 + 7_140 + 850 + 2 * (16 + 32 + 84)
    assert parameter_count(create_model("lenet", **FASHION)) == expected < 100_000


def test_three_to_four_channels_take_twelve_kernels():
    assert ConvBlock(3, 4, kernel_size=5).conv.weight.numel() == 3 * 4 * 5 * 5


@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 32), (64, 48)])
def test_lenet_gives_one_logit_per_class_at_any_size(height: int, width: int):
    model = LeNet(in_channels=3, class_count=7, height=height, width=width).eval()
    assert model(torch.zeros(2, 3, height, width)).shape == (2, 7)


def test_batch_norm_uses_the_batch_in_training_and_the_running_averages_in_evaluation():
    torch.manual_seed(0)
    block = ConvBlock(1, 2, kernel_size=3)
    block.norm.momentum = 0.1
    images = torch.randn(16, 1, 9, 9) * 3 + 5
    convolved = block.conv(images)
    mean, variance = convolved.mean(dim=(0, 2, 3)), convolved.var(dim=(0, 2, 3), unbiased=False)

    def normalised(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        return ((convolved - mean.view(shape)) / (variance.view(shape) + block.norm.eps).sqrt()).relu()

    torch.testing.assert_close(block.train()(images), normalised(mean, variance), rtol=0, atol=1e-5)
    # One training step has moved the running averages a tenth of the way, from mean 0 and variance 1.
    running = (block.norm.running_mean.clone(), block.norm.running_var.clone())
    torch.testing.assert_close(running[0], 0.1 * mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(block.eval()(images), normalised(*running), rtol=0, atol=1e-4)
    assert torch.equal(block.norm.running_mean, running[0])  # evaluation leaves them alone


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("arch", ["lenet", "alexnet"])
def test_pooling_before_relu_trains_as_the_layers_in_their_order_do(arch: str, activation: str):
    torch.manual_seed(0)
    images = torch.randn(6, 1, 28, 28)
    images[3:] = 0  # the same value all over, so that pooling has to choose among equals
    network = create_model(arch, **FASHION, activation=activation, dropout=0.0).train()
    row = network.features
    order: list[str] = []
    for name, module in row.named_modules():
        if isinstance(module, nn.ReLU | nn.MaxPool2d):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    results = []
    for forward in (row, lambda maps: nn.Sequential.forward(row, maps)):
        with torch.autocast("cpu", torch.bfloat16):
            network.classifier(forward(images)).float().square().sum().backward()
        results.append([value.grad.clone() for value in network.parameters()])
        network.zero_grad()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    pooled_first = len(order) // 2 and order[0] != order[len(order) // 2]
    assert pooled_first == (activation == "relu"), "the twin: ReLU did wait"


def test_without_batch_norm_convolutions_have_a_bias_instead():
    model = create_model("lenet", **FASHION, batch_norm=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(module.bias is not None for module in model.modules() if isinstance(module, nn.Conv2d))
    assert all(module.bias is None for module in LeNet(**FASHION).modules() if isinstance(module, nn.Conv2d))


def test_the_activation_is_the_one_asked_for_everywhere():
    model = create_model("lenet", **FASHION, activation="sigmoid")
    assert sum(isinstance(module, nn.Sigmoid) for module in model.modules()) == 4
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())


def test_dropout_acts_only_in_training():
    torch.manual_seed(0)
    model = create_model("lenet", **FASHION, batch_norm=False, dropout=0.5)
    images = torch.randn(4, 1, 28, 28)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_normalized_is_the_formula_on_uint8_and_float_alike():
    pixels = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).to(torch.uint8)
    model = Normalized(nn.Identity(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    expected = torch.stack(
        [
            (pixels[:, channel].double() / 255 - mean) / std
            for channel, (mean, std) in enumerate(zip((0.1, 0.2, 0.3), (0.5, 0.25, 2.0), strict=True))
        ],
        dim=1,
    )
    # Three float32 operations on values below 4: each errs by at most 2^-23 of its result.
    torch.testing.assert_close(model(pixels).double(), expected, rtol=0, atol=2e-6)
    assert torch.equal(model(pixels), model(pixels.float()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: create_model("lenett", **FASHION), "did you mean 'lenet'", id="misspelt name"),
        pytest.param(lambda: create_model("lenet", **FASHION, depth=3), "depth", id="argument that it lacks"),
        pytest.param(lambda: LeNet(**FASHION | {"height": 27}), "not 27x28", id="input too small"),
        pytest.param(lambda: LeNet(**FASHION, dropout=1.0), "dropout is 1.0", id="dropout of 1"),
        pytest.param(lambda: LeNet(**FASHION, activation="gelu"), "relu, sigmoid", id="unknown activation"),
        pytest.param(lambda: Normalized(nn.Identity(), (0.1,), (0.0,)), "std above 0", id="std of zero"),
        pytest.param(lambda: Normalized(nn.Identity(), (0.1,), (1.0, 1.0)), "one of each", id="uneven"),
    ],
)
def test_invalid_network_arguments_are_refused_by_name(build, message: str):
    with pytest.raises(ModelError, match=message):
        build()
