"""What becomes of every batch norm, on networks traced from PyTorch, and that the answers stay the same."""

import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from foldserve.export.errors import FoldError
from foldserve.export.graph.fold_pass import FoldPass
from foldserve.export.graph.trace import trace
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized
from tests.support import torch_networks as networks
from tests.support.torch_networks import Classifier, build_network, randomised

# Logits here stay below 30: float32 rounding through a few layers is some 1e-6, a wrong fold some 1e-1.
TOLERANCE = 2e-5


def conv_norm(*between: nn.Module, **convolution) -> nn.Sequential:
    settings = {"kernel_size": 3, "padding": 1} | convolution
    return nn.Sequential(nn.Conv2d(3, 6, **settings), *between, nn.BatchNorm2d(6), nn.ReLU())


def exported(network: nn.Module, metadata):
    built = build_network(network, metadata)
    actions = {fold.name: fold.action for fold in built.folds}
    return built, actions


def largest_difference(network: nn.Module, content: bytes, metadata, count: int = 7) -> float:
    images = np.random.default_rng(5).integers(0, 256, (count, *metadata.image.shape), dtype=np.uint8)
    with torch.no_grad():
        expected = Normalized(network, metadata.mean, metadata.std).eval()(torch.from_numpy(images)).numpy()
    assert np.abs(expected).max() > 0.05, "logits near 0 would agree with anything"
    (actual,) = Session(content, device="cpu", intra_op_threads=1).run(["logits"], {"image": images})
    return float(np.abs(actual - expected).max())


F_, R = "folded", "rewritten"
CASES = {
    "conv bn": (conv_norm(), 6, [F_]),
    "conv without bias": (conv_norm(bias=False), 6, [F_]),
    "groups stride dilation": (conv_norm(groups=3, stride=2, dilation=2), 6, [F_]),
    "reflected borders": (conv_norm(padding_mode="reflect"), 6, [F_]),
    "bn without affine": (
        nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False), nn.Tanh()),
        6,
        [F_],
    ),
    "dropout and identity between": (conv_norm(nn.Dropout(0.5), nn.Identity()), 6, [F_]),
    "bn bn chain": (conv_norm(nn.BatchNorm2d(6), nn.BatchNorm2d(6)), 6, [F_, F_, F_]),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(3, 6, 2, stride=2, groups=3), nn.BatchNorm2d(6)),
        6,
        [F_],
    ),
    "functional calls": (networks.Functional(), 6, [F_]),
    "residual": (networks.Residual(), 6, [F_, F_, F_]),
    "dense": (networks.Dense(), 6, [R]),
    "shared convolution": (networks.SharedConvolution(), 6, [R, F_]),
    "shared output": (networks.SharedOutput(), 6, [R]),
    "shared batch norm": (networks.SharedNorm(), 6, [F_, F_]),
    "inverted residual": (networks.InvertedResidual(), 3, [F_, F_, F_]),
    "channel shuffle": (networks.ChannelShuffle(), 6, [F_, F_]),
    "inception": (networks.Inception(), 12, [F_, F_, F_, F_]),
    "bn after relu chain": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.ReLU()),
        6,
        [R, F_],
    ),
    "bn before unpadded conv": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)),
        6,
        [F_],
    ),
    "bn before reflected conv": (
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", groups=2),
        ),
        6,
        [F_],
    ),
    "bn before zero padded conv": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)),
        6,
        [R],
    ),
    "bn before transposed conv": (
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 6, 3, stride=2)),
        6,
        [R],
    ),
    "bn on the input": (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1)), 6, [F_]),
    "instance and group norm beside it": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.InstanceNorm2d(6), nn.GroupNorm(2, 6)),
        6,
        [F_],
    ),
}


@pytest.mark.parametrize(("body", "channels", "expected"), CASES.values(), ids=CASES)
def test_every_batch_norm_is_folded_or_rewritten_and_answers_stay(body, channels, expected, metadata):
    torch.manual_seed(11)
    network = randomised(Classifier(body, channels))
    with torch.no_grad():
        network.head.weight.mul_(4)  # instance norm and means over space leave little; see largest_difference
    built, _ = exported(network, metadata)
    assert [fold.action for fold in built.folds[:-1]] == expected
    model_proto = onnx.load_from_string(built.content)
    assert not {"BatchNormalization", "Identity", "Dropout"} & {
        node.op_type for node in model_proto.graph.node
    }
    assert largest_difference(network, built.content, metadata) < TOLERANCE


class Head(nn.Module):
    """Batch norm around linear layers, on [N, features]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(3 * 12 * 12, 8, bias=False), nn.BatchNorm1d(8)
        self.norm2, self.fc2 = nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.norm2(F.relu(self.norm1(self.fc1(x.flatten(1))))))


def test_linear_layers_take_batch_norm_from_both_sides(metadata):
    network = randomised(Head())
    built, actions = exported(network, metadata)
    assert actions["norm1"] == actions["norm2"] == "folded"
    assert largest_difference(network, built.content, metadata) < TOLERANCE


def test_rows_of_a_sequence_are_not_taken_for_channels(metadata):
    """Linear on [N, L, F] ends in F, but BatchNorm1d there normalises L: it must not go into the weight."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm, self.head = nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.fc(x.mean(1))).mean(1))

    network = randomised(Sequence())
    built, actions = exported(network, metadata)
    assert actions["norm"] == "rewritten"
    assert largest_difference(network, built.content, metadata) < TOLERANCE


@given(
    groups=st.sampled_from([1, 3]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    affine=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=2, deadline=None, derandomize=True)  # test_fold_chains has 60, untraced
def test_any_convolution_folds(*, groups, kernel, stride, padding, dilation, bias, affine, seed):
    from foldserve.artifact.format import ModelMetadata  # fixtures and @given do not mix
    from tests.export.conftest import SPEC

    metadata = ModelMetadata(("a", "b", "c", "d"), (0.3,), (0.2,), SPEC)
    torch.manual_seed(seed)
    first = nn.Conv2d(1, 3, kernel, stride=stride, padding=padding, bias=bias)
    second = nn.Conv2d(3, 6, kernel, padding=padding, dilation=dilation, groups=groups, bias=bias)
    body = nn.Sequential(first, nn.BatchNorm2d(3, affine=affine), nn.ReLU(), second, nn.BatchNorm2d(6))
    network = randomised(Classifier(body, 6), seed)
    built, _ = exported(network, metadata)
    assert [fold.action for fold in built.folds] == ["folded"] * 3
    assert largest_difference(network, built.content, metadata) < TOLERANCE


def test_declined_folds_say_why(metadata):
    reasons = {
        name: exported(randomised(Classifier(nn.Sequential(body, nn.Tanh()), channels)), metadata)[0]
        .folds[-2]
        .reason
        for name, body, channels in [
            ("convolution", networks.SharedConvolution(), 6),
            ("output", networks.SharedOutput(), 6),
            ("concatenation", networks.Inception(), 12),
        ]
    }
    assert "the weight of body.0.conv before it is used 2 times" in reasons["convolution"]
    assert "the output of body.0.conv before it is used elsewhere too" in reasons["output"]
    assert reasons["concatenation"].startswith(
        "Relu (relu) before it is neither convolution nor linear; Tanh ("
    )


def test_names_are_those_of_the_network(metadata):
    built, actions = exported(randomised(Classifier(conv_norm(bias=False), 6)), metadata)
    names = [tensor.name for tensor in onnx.load_from_string(built.content).graph.initializer]
    assert actions == {"body.1": "folded", "input scaling": "folded"}
    assert {"body.0.weight", "body.0.bias", "head.weight", "head.bias"} <= set(names)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_borders_see_the_normalised_zero_not_a_black_pixel(padding_mode, metadata):
    """The answer is the border itself: no pooling hides it, and the mean is far from 0."""

    class Border(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 5, padding=2, padding_mode=padding_mode)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x))[:, :, 0, 0]

    network = randomised(Border())
    built, actions = exported(network, metadata)
    assert actions == {"norm": "folded", "input scaling": "folded"}
    assert largest_difference(network, built.content, metadata) < TOLERANCE


@pytest.mark.parametrize("is_layer", [True, False], ids=["a layer", "a product"])
def test_input_scaling_goes_into_all_that_reads_the_input_if_all_are_layers(is_layer, metadata):
    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 1), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            other = self.other(x) if is_layer else x.abs().mean(1, keepdim=True)
            return self.head(F.relu(self.conv(x)).mean((2, 3)) + other.mean((2, 3)))

    torch.manual_seed(0)
    network = TwoReaders().eval()
    built, actions = exported(network, metadata)
    assert actions["input scaling"] == ("folded" if is_layer else "rewritten")
    assert largest_difference(network, built.content, metadata) < TOLERANCE


def test_a_network_that_reads_its_batch_size_takes_the_input_scaling_into_its_weights(metadata):
    class ClassToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8)
            self.token, self.head = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
            return self.head(torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1).softmax(1).mean(1) * 9)

    torch.manual_seed(0)
    network = randomised(ClassToken())
    built, actions = exported(network, metadata)
    assert actions == {"norm": "folded", "input scaling": "folded"}
    assert largest_difference(network, built.content, metadata) < TOLERANCE


def test_normalisation_is_computed_in_float64_and_rounded_once(metadata):
    """Bit for bit: with these figures float32 on the way would be off in the last place of both."""
    mean, std = (0.1307, 0.229, 0.247), (0.229, 0.224, 0.225)
    metadata = dataclasses.replace(metadata, mean=mean, std=std)
    network = Classifier(nn.Conv2d(3, 6, 3), 6).eval()
    built, actions = exported(network, metadata)
    assert actions == {"input scaling": "folded"}
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(built.content).graph.initializer
    }
    scale = 1 / (255 * np.array(std))
    weight = network.body.weight.detach().numpy().astype(np.float64) * scale.reshape(-1, 1, 1)
    assert np.array_equal(constants["body.weight"], weight.astype(np.float32))
    assert np.array_equal(constants["image.mean"].reshape(-1), (255 * np.array(mean)).astype(np.float32))


# The batch norm of the input.


class FirstNorm(nn.Module):
    def __init__(self, *, second: bool = False) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1)
        self.other, self.head = (nn.Conv2d(3, 6, 1) if second else None), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.norm(x)).relu().mean((2, 3))
        return self.head(y if self.other is None else y + self.other(x).mean((2, 3)))


def first_norm(**arguments) -> nn.Module:
    torch.manual_seed(5)
    network = randomised(FirstNorm(**arguments))
    network.norm.weight.data.copy_(torch.tensor([0.7, -1.2, 0.4]))
    return network


def test_a_batch_norm_of_the_input_goes_into_its_normalisation(metadata):
    """Also before a zero-padded convolution: the border is 0 behind the batch norm, as in the network."""
    network = first_norm()
    built, actions = exported(network, metadata)
    assert actions == {"norm": "folded", "input scaling": "folded"}
    assert built.folds[0].reason == "into the normalisation of the input"
    operations = [node.op_type for node in onnx.load_from_string(built.content).graph.node]
    assert operations == ["Cast", "Sub", "Conv", "Relu", "ReduceMean", "ReduceMean", "Gemm", "Softmax"]
    assert largest_difference(network, built.content, metadata) < TOLERANCE
    network.norm.running_mean[1] += 1e-2  # the twin
    assert largest_difference(network, built.content, metadata) > TOLERANCE


@pytest.mark.parametrize("case", ["a scale of zero", "another reader"])
def test_a_batch_norm_of_the_input_that_cannot_be_undone_stays(case, metadata):
    network = first_norm(second=case == "another reader")
    if case == "a scale of zero":
        network.norm.weight.data[2] = 0
    built, actions = exported(network, metadata)
    assert actions["norm"] == "rewritten"
    assert largest_difference(network, built.content, metadata) < TOLERANCE


def test_the_network_given_is_not_changed(metadata):
    network = randomised(Classifier(networks.Residual(), 6))
    before = copy.deepcopy(network.state_dict())
    build_network(network, metadata)
    assert not network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_changed_weight_is_seen(metadata):
    """The twin of every comparison above: one weight of the reference is off by a thousandth."""
    network = randomised(Classifier(conv_norm(), 6))
    built, _ = exported(network, metadata)
    with torch.no_grad():
        network.body[0].weight[0, 0, 1, 1] += 1e-3
    assert largest_difference(network, built.content, metadata) > TOLERANCE


def test_trace_keeps_every_batch_norm():
    """Should torch's exporter begin to fold by itself, our counts would mean nothing."""
    model = trace(randomised(Classifier(networks.Residual(), 6)), (3, 12, 12)).model
    assert [node.op_type for node in model.graph].count("BatchNormalization") == 3


def test_graph_with_unfolded_batch_norm_is_refused(metadata, monkeypatch):
    from foldserve.export.errors import TraceError

    monkeypatch.setattr(FoldPass, "fold_batch_norms", lambda *_: [])
    with pytest.raises(TraceError, match="still holds BatchNormalization"):
        build_network(randomised(Classifier(conv_norm(), 6)), metadata)


class BatchStatistics(nn.Module):
    """The functional spelling of a batch norm without running statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(6, track_running_stats=False), BatchStatistics()], ids=["module", "functional"]
)
def test_statistics_of_the_batch_are_refused(norm, metadata):
    network = Classifier(nn.Sequential(nn.Conv2d(3, 6, 3), norm), 6).eval()
    with pytest.raises(FoldError, match=r"body\.1 normalises by the statistics of the current batch"):
        build_network(network, metadata)


def test_variance_below_minus_epsilon_is_refused(metadata):
    network = randomised(Classifier(conv_norm(), 6))
    network.body[1].running_var[2] = -1.0
    with pytest.raises(FoldError, match=r"body\.1 folds to numbers that are not finite"):
        build_network(network, metadata)
