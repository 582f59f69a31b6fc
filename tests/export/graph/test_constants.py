"""What no image reaches is computed once, at export, in float64; everything else is left as it is."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foldserve.export.errors import FoldError, TraceError
from foldserve.export.graph import trace as trace_module
from foldserve.export.graph.constants import find_constants
from foldserve.export.graph.trace import trace
from tests.export.graph.test_fold_pass import TOLERANCE, exported, largest_difference
from tests.support.torch_networks import Classifier, build_network, randomised

SHAPE = (3, 12, 12)


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation as timm's ScaledStdConv2d has it, by a batch norm of the weights."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, self.out_channels).reshape(-1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=(self.gain * 0.7).view(-1),
            training=True,
            momentum=0.0,
            eps=1e-6,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardised() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(StandardisedConv2d(3, 8, 3), nn.ReLU(), StandardisedConv2d(8, 6, 3, groups=2))
    return randomised(Classifier(nn.Sequential(body, nn.BatchNorm2d(6)), 6))


def initializers(content: bytes) -> dict[str, np.ndarray]:
    graph = onnx.load_from_string(content).graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


def test_standardised_weights_are_constants(metadata):
    network = standardised()
    built, actions = exported(network, metadata)
    assert actions == {"body.1": "folded", "input scaling": "folded"}
    assert largest_difference(network, built.content, metadata) < TOLERANCE
    operations = [node.op_type for node in onnx.load_from_string(built.content).graph.node]
    assert operations == ["Cast", "Sub", "Conv", "Relu", "Conv", "ReduceMean", "Gemm", "Softmax"]


def test_another_epsilon_of_the_weights_is_seen(metadata):
    """The twin: epsilon 1e-5 instead of 1e-6, on weights small enough for it to matter."""
    network = standardised()
    with torch.no_grad():
        network.body[0][0].weight.mul_(0.01)
    built, _ = exported(network, metadata)
    assert largest_difference(network, built.content, metadata) < TOLERANCE
    with torch.no_grad():
        network.body[0][0].weight.mul_(1.05)  # without epsilon the scale would not matter at all
    assert largest_difference(network, built.content, metadata) > TOLERANCE


def test_computed_weights_are_rounded_once(metadata):
    """Bit for bit: standardisation, batch norm and rounding, with no float32 in between."""
    network = standardised()
    built, _ = exported(network, metadata)
    convolution, norm = network.body[0][2], network.body[1]
    weight = convolution.weight.detach().numpy().astype(np.float64).reshape(6, -1)
    centred = weight - weight.mean(1, keepdims=True)
    gain = convolution.gain.detach().numpy().astype(np.float64).reshape(6, 1) * 0.7
    weight = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) * gain
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    expected = (weight * scale.numpy().reshape(6, 1)).reshape(6, 4, 3, 3)
    actual = initializers(built.content)["body.0.2.weight"]
    # Sums of float64 depend on their order in the last place: one number in many may round to its neighbour.
    assert (actual == expected.astype(np.float32)).mean() > 0.99
    assert np.abs(actual / expected - 1).max() < 1.01 * 2.0**-24


def test_without_the_pass_standardised_weights_are_refused(monkeypatch, metadata):
    monkeypatch.setattr(trace_module, "find_constants", lambda _: set())
    with pytest.raises(FoldError, match="normalises by the statistics of the current batch"):
        build_network(standardised(), metadata)


class Calling(nn.Module):
    """Calls a function of the module and the features, then a linear layer."""

    def __init__(self, function, **parts) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.function = function
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.gamma = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.table = nn.Parameter(torch.randn(19, 6))
        self.register_buffer("places", torch.arange(100) % 19)
        self.register_buffer("counter", torch.ones(6, 1, 1))
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(self, self.conv(x)).mean((2, 3)))


def changed_in_place(self, x):
    factors = torch.zeros(6, 10, 10)
    factors[:, :5] = self.gamma
    return x * factors


def written_by_the_image(self, x):
    factors = torch.zeros_like(self.gamma) + self.gamma
    factors[:1] = x[:1, :1, :1, :1].sum()
    return x * factors


def view_written_by_the_image(self, x):
    factors = (self.gamma + 1).view(-1).contiguous()
    factors[1:].add_(x[0, 0, 0, 0])
    return x * factors.view(-1, 1, 1)


def bias_of_positions(self, x):
    return x + self.table[self.places].reshape(10, 10, 6).permute(2, 0, 1).exp()


def interpolated_positions(self, x):
    table = self.table[:16].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    return x * F.interpolate(table, size=(10, 10), mode="bicubic", align_corners=False)


def sinusoids(self, x):
    angles = torch.arange(6, dtype=torch.float32).add(1).reciprocal().reshape(6, 1, 1) * torch.arange(10)
    return x * torch.sin(angles) + x * self.gamma.exp().cos()


def in_half(self, x):
    return x * self.gamma.half().float()


def in_whole_numbers(self, x):
    return x * self.gamma.mul(8).int()


def by_comparison(self, x):
    return x * torch.where(self.gamma > 1, self.gamma, self.gamma * 0.1)


def rounded_by_adding(self, x):
    """In float32 a sum near 3 * 2**22 is a whole number; in float64 it is not rounded at all."""
    return x * (self.gamma * 5 + 3 * 2**22 - 3 * 2**22)


def rounded_by_name(self, x):
    """In float32 0.7 * 45 is 31.5, in float64 a little less."""
    return x * torch.round(self.counter * 0.7 * 45) / 32


def type_as_it_is(self, x):
    """The operation is called ``to``, as a method of every module is (timm's EvoNorm)."""
    return x * self.gamma.exp().to(torch.float32)


# What each computes beside the image, and the operations that must not be left in the file.
CASES = {
    "table": (bias_of_positions, {"Gather", "Exp"}),
    "interpolated": (interpolated_positions, {"Resize", "Slice"}),
    "sinusoids": (sinusoids, {"Sin", "Exp", "Cos", "Range"}),
    "named as a method": (type_as_it_is, {"Exp"}),
    "changed in place": (changed_in_place, set()),
    "written by the image": (written_by_the_image, set()),
    "view written by the image": (view_written_by_the_image, set()),
    "half": (in_half, set()),
    "whole numbers": (in_whole_numbers, set()),
    "comparison": (by_comparison, set()),
    "rounded by adding": (rounded_by_adding, set()),
    "rounded by name": (rounded_by_name, set()),
}


@pytest.mark.parametrize(("function", "gone"), CASES.values(), ids=CASES)
def test_what_no_image_reaches_is_computed(function, gone, metadata):
    network = Calling(function).eval()
    built, _ = exported(network, metadata)
    assert not gone & {node.op_type for node in onnx.load_from_string(built.content).graph.node}
    one_image = 1 if "image" in function.__name__ else 7  # those read the first image of the batch
    assert largest_difference(network, built.content, metadata, one_image) < TOLERANCE


def test_a_changed_parameter_of_a_table_is_seen(metadata):
    """The twin of the cases above."""
    network = Calling(bias_of_positions).eval()
    built, _ = exported(network, metadata)
    with torch.no_grad():
        network.table[3, 2] += 1e-2
    assert largest_difference(network, built.content, metadata) > TOLERANCE


REFUSED = {
    "weights that an image reaches": lambda self, x: F.batch_norm(
        self.gamma.view(1, 6, 1, 1) * x, None, None, training=True
    ),
    "running statistics at hand": lambda self, x: (
        x
        + F.batch_norm(self.table, self.counter.view(-1), self.gamma.view(-1), training=True)[0].view(6, 1, 1)
    ),
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_batch_norms_of_more_than_weights_are_refused(function, metadata):
    with pytest.raises(FoldError, match="normalises by the statistics of the current batch"):
        build_network(Calling(function).eval(), metadata)


def test_random_constants_are_refused(metadata):
    with pytest.raises(TraceError, match="draws random numbers"):
        build_network(Calling(lambda self, x: x + torch.rand_like(self.gamma) * self.gamma).eval(), metadata)


def found(function) -> set[str]:
    traced = torch.export.export(
        Calling(function).eval(),
        (torch.zeros(2, *SHAPE),),
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
    )
    return {node.name for node in find_constants(traced)}


def test_buffers_that_change_from_call_to_call_are_no_constants():
    def counting(self, x):
        self.counter.add_(1)
        return x * (self.counter * self.gamma)

    assert not found(counting)


def test_constants_much_larger_than_their_parameters_stay_computed():
    assert "mul" in found(lambda self, x: x * (self.gamma * 2).mean())
    large = found(lambda self, x: x + (self.gamma * torch.ones(1000, 1000)).sum())
    assert "ones" not in large
    assert "mul" not in large


def test_values_rounded_on_the_way_stay_computed():
    assert "mul" in found(in_whole_numbers)
    assert len(found(in_whole_numbers)) == 1
    assert not found(in_half)


def test_tracing_twice_gives_the_same_file(metadata):
    assert exported(standardised(), metadata)[0].content == exported(standardised(), metadata)[0].content


def test_the_network_itself_is_not_changed():
    network = standardised()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trace(network, SHAPE)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
