"""The judge of `make bench-networks`: a small fault is wrong; fresh networks get statistics that count."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from benchmarks.networks.images import draw_images, normalised
from benchmarks.networks.judge import make_judge
from benchmarks.networks.onnx_files import give_random_weights
from benchmarks.networks.statistics import TRAINED_LOGIT, _scale_last_layer, give_statistics

SIDE = 16


def fresh(*ending: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    features = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(8, 5), *ending).eval()


def answer(network: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = network(torch.from_numpy(normalised(images)).float()).numpy()
    return logits


def test_float32_is_right_and_small_faults_are_wrong() -> None:
    network = fresh()
    give_statistics(network, "calibrated", SIDE)
    judge = make_judge(network, SIDE)
    right = answer(network, judge.images)
    assert judge.verdict(judge.error(right)) == "right"
    for change in ("weight", "epsilon"):
        changed = copy.deepcopy(network)
        if change == "weight":
            with torch.no_grad():
                changed[0].weight.mul_(1.001)
        else:
            changed[1].eps = 2e-5
        assert judge.verdict(judge.error(answer(changed, judge.images))) == "wrong", change
    assert judge.verdict(judge.error(right[:-1])) == "wrong"
    broken = right.copy()
    broken[0, 0] = np.nan
    assert judge.verdict(judge.error(broken)) == "wrong"


def test_networks_without_finite_logits_are_not_judged() -> None:
    network = fresh()
    with torch.no_grad():
        network[5].bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        make_judge(network, SIDE)


def test_images_of_two_seeds_differ_and_those_of_one_do_not() -> None:
    images = draw_images(8, SIDE, seed=1)
    assert images.shape == (8, 3, SIDE, SIDE)
    assert np.array_equal(images, draw_images(8, SIDE, seed=1))
    others = draw_images(8, SIDE, seed=2)
    assert all((one != other).any() for one, other in zip(images, others, strict=True))


@pytest.mark.parametrize("ending", [pytest.param((), id="linear"), pytest.param((nn.ReLU(),), id="relu")])
def test_calibrated_statistics_are_those_of_the_activations(ending: tuple[nn.Module, ...]) -> None:
    network = fresh(*ending)
    give_statistics(network, "calibrated", SIDE)
    images = torch.from_numpy(normalised(draw_images(64, SIDE, 20))).float()
    values = network[0](images)
    torch.testing.assert_close(network[1].running_mean, values.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    others = torch.from_numpy(normalised(draw_images(64, SIDE, 99))).float()
    largest = float(network(others).detach().abs().amax(1).median())
    assert TRAINED_LOGIT / 2 < largest < 2 * TRAINED_LOGIT
    assert not any(module.training for module in network.modules())


def test_one_image_that_is_unlike_the_others_does_not_make_them_alike() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
    images = torch.randn(9, 3, 2, 2)
    images[4] *= 1e4
    with torch.no_grad():
        _scale_last_layer(network, images, network(images))
        logits = network(images)
    assert float((logits - logits[:1]).abs().amax(1).median()) > 1


class StarReLU(nn.Module):
    """As timm has it: s relu(x)^2 + b, fresh with s = 1 and b = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.relu(x) ** 2 + self.bias


class Block(nn.Module):
    """Layer norm, a linear layer, StarReLU and another linear layer, beside x itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(16, bias=False), StarReLU()
        self.wide, self.narrow = nn.Linear(16, 64, bias=False), nn.Linear(64, 16, bias=False)
        for layer in (self.wide, self.narrow):
            nn.init.normal_(layer.weight, std=0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.65 * x + self.narrow(self.act(self.wide(self.norm(x))))


def test_star_relu_lets_the_image_through() -> None:
    """With another bias every block adds the same constant, and the logits show rounding."""
    torch.manual_seed(1)
    features = [nn.Conv2d(3, 16, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *(Block() for _ in range(12))]
    network = nn.Sequential(*features, nn.LayerNorm(16), nn.Linear(16, 5)).eval()
    twin = copy.deepcopy(network)
    assert give_statistics(network, "calibrated", SIDE) > 0.1
    for module in twin.modules():
        if isinstance(module, StarReLU):
            nn.init.constant_(module.bias, 0.4)
            module.__class__ = type("Another", (StarReLU,), {})  # which is not calibrated
    assert give_statistics(twin, "calibrated", SIDE) < 0.05
    errors = [make_judge(each, SIDE).pytorch_error for each in (network, twin)]
    assert errors[0] < errors[1] / 5


@pytest.mark.parametrize("kind", ["calibrated", "random"])
def test_nothing_stays_as_constant_as_it_was(kind: str) -> None:
    """Scales of zero hide the branch behind them, and batch norm of fresh statistics does nothing."""
    network = fresh()
    nn.init.zeros_(network[1].weight)
    again = copy.deepcopy(network)
    for each in (network, again):
        give_statistics(each, kind, SIDE)
    for tensor in (network[1].weight, network[1].bias, network[1].running_mean, network[1].running_var):
        assert float(tensor.detach().std()) > 0.01
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_constant_weights_of_onnx_files_become_random() -> None:
    shape = numpy_helper.from_array(np.array([4, 3, 3, 3], np.int64), "shape")
    value = numpy_helper.from_array(np.array([0.5], np.float32))
    nodes = [
        onnx.helper.make_node("ConstantOfShape", ["shape"], ["weights"], value=value),
        onnx.helper.make_node("Conv", ["x", "weights"], ["y"]),
    ]
    image = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4, 6, 6])
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [image], [output], [shape]))
    give_random_weights(model)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    assert numpy_helper.to_array(model.graph.initializer[1]).std() > 0.1
