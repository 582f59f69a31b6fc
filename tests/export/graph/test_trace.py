"""What tracing refuses, and what it must understand whatever way a network is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from foldserve.export.errors import FoldError, TraceError
from foldserve.export.graph.fold_pass import FoldPass
from foldserve.export.verification.parity import check_parity
from foldserve.export.verification.reference import TorchReference
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized
from tests.support.torch_networks import Classifier, build_network, randomised

if TYPE_CHECKING:
    from collections.abc import Callable


class Calling(nn.Module):
    """A convolution, then ``function`` of it and of its modules, then a linear layer."""

    def __init__(self, function: Callable[..., torch.Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(self, self.conv(x)).mean((2, 3)))


def exported(network, metadata):
    """Export ``network`` and verify it as ``foldserve export`` does."""
    torch.manual_seed(4)
    built = build_network(network, metadata)
    images = np.random.default_rng(6).integers(0, 256, (8, *metadata.image.shape), dtype=np.uint8)
    reference = TorchReference(Normalized(network, metadata.mean, metadata.std).eval())
    check_parity(Session(built.content, device="cpu", intra_op_threads=1), reference, images)
    return built


OF_THE_BATCH = {
    "by keyword": lambda _, x: torch.batch_norm(
        x,
        weight=None,
        bias=None,
        running_mean=None,
        running_var=None,
        training=True,
        momentum=0.1,
        eps=1e-5,
        cudnn_enabled=False,
    ),
    "with running statistics at hand": lambda _, x: F.batch_norm(
        x, torch.zeros(6), torch.ones(6), training=True
    ),
    "the native operator": lambda _, x: torch.native_batch_norm(
        x, None, None, torch.zeros(6), torch.ones(6), True, 0.1, 1e-5
    )[0],
}


@pytest.mark.parametrize("function", OF_THE_BATCH.values(), ids=OF_THE_BATCH)
def test_statistics_of_the_batch_are_refused_however_they_are_called(function, metadata):
    with pytest.raises(FoldError, match="normalises by the statistics of the current batch"):
        build_network(Calling(function).eval(), metadata)


RANDOM = {
    "dropout": lambda _, x: F.dropout(x, 0.5, training=True),
    "dropout by keyword": lambda _, x: torch.dropout(x, p=0.5, train=True),
    "dropout that is not told whether to train": lambda _, x: torch.native_dropout(x, 0.5, None)[0],
    "dropout of channels": lambda _, x: F.dropout2d(x, 0.5, training=True),
    "alpha dropout": lambda _, x: F.alpha_dropout(x, 0.5, training=True),
    "noise": lambda _, x: x + torch.rand_like(x),
    "noise of a generator's": lambda _, x: x + torch.randn(6, 1, 1),
    "bernoulli": lambda _, x: x * torch.bernoulli(torch.full((6, 1, 1), 0.5)),
    "random slopes": lambda _, x: F.rrelu(x, training=True),
    "random attention": lambda _, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_operations_are_refused(name, metadata):
    why = "drops values" if "dropout" in name else "draws random numbers"
    with pytest.raises(TraceError, match=rf"{why} in eval mode too \(.*its output is not repeatable"):
        build_network(Calling(RANDOM[name]).eval(), metadata)


def test_attention_without_dropout_is_accepted(metadata):
    exported(Calling(lambda _, x: F.scaled_dot_product_attention(x, x, x)).eval(), metadata)


def test_dropout_that_eval_mode_turns_off_is_accepted(metadata):
    network = Calling(
        lambda self, x: self.norm(self.drop(F.dropout2d(x, training=self.training))),
        norm=nn.BatchNorm2d(6),
        drop=nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()),
    )
    exported(randomised(network), metadata)


def test_a_module_in_training_mode_is_named(metadata):
    network = randomised(Classifier(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), 6))
    network.body[1].train()
    with pytest.raises(TraceError, match=r"body\.1 \(BatchNorm2d\) is in training mode"):
        build_network(network, metadata)


def test_control_flow_on_values_is_refused_in_one_line(metadata):
    with pytest.raises(TraceError, match="cannot be traced") as raised:
        build_network(Calling(lambda _, x: x if x.sum() > 0 else -x).eval(), metadata)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_network_of_another_type_than_its_images_is_refused(dtype, metadata):
    network = randomised(Classifier(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), 6)).to(dtype)
    with pytest.raises(TraceError, match=r"cannot be traced: the network \(\w+, .*\): Input type"):
        build_network(network, metadata)


ANSWERS = {
    "two tensors": (lambda x: (x, x * 2), "has 1 inputs and 2 outputs"),
    "a map": (lambda x: x[:, :, None, None], r"a tensor of shape \[.*,4,1,1\]"),
    "one number an image": (lambda x: x[:, 0], "a tensor of shape"),
    "one answer for the batch": (lambda x: x.mean(0, keepdim=True), r"a tensor of shape \[1,4\]"),
    "a class for each image": (lambda x: x @ x.T, "a tensor of shape"),
    "any two images": (lambda x: x + torch.zeros(2, 1), "cannot be traced"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_output_other_than_one_row_of_logits_per_image_is_refused(name, metadata):
    answer, message = ANSWERS[name]

    class Network(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return answer(super().forward(x))

    network = Network(nn.Conv2d(3, 6, 3), 6).eval()
    with pytest.raises(TraceError, match=message):
        build_network(network, metadata)


# What must work, and how its weights are called.


def initializers(built):
    return {tensor.name for tensor in onnx.load_from_string(built.content).graph.initializer}


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights_are_computed_once_and_called_after_their_layer(norm, metadata):
    """Large enough that the constant folder would leave them to be computed for every image."""
    body = nn.Sequential(
        norm(nn.Conv2d(3, 64, 3)),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        norm(nn.Conv2d(64, 256, 5)),
        nn.BatchNorm2d(256),
    )
    built = exported(randomised(Classifier(body, 256)), metadata)
    assert [(fold.name, fold.action) for fold in built.folds[:2]] == [
        ("body.1", "folded"),
        ("body.4", "folded"),
    ]
    assert {"body.0.weight", "body.0.bias", "body.3.weight", "body.3.bias"} <= initializers(built)
    assert not [name for name in initializers(built) if "parametrizations" in name]


def test_tied_weights_are_a_shared_convolution(metadata):
    """Two modules, one parameter."""
    one, two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
    two.weight = one.weight
    norms = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
    body = nn.Sequential(nn.Conv2d(3, 6, 1), one, norms[0], nn.ReLU(), two, norms[1], nn.ReLU())
    built = exported(randomised(Classifier(body, 6)), metadata)
    assert [fold.action for fold in built.folds[:2]] == ["rewritten"] * 2
    assert "is used 2 times" in built.folds[0].reason


@pytest.mark.parametrize(
    "stored",
    [
        lambda weight: weight.to(memory_format=torch.channels_last),
        lambda _: torch.randn(3, 3, 3, 6).permute(3, 2, 1, 0),
        lambda _: torch.randn(6, 3, 5, 5)[:, :, ::2, ::2],
    ],
    ids=["channels last", "transposed", "a slice"],
)
def test_weights_in_any_memory_layout_are_exported(stored, metadata):
    conv = nn.Conv2d(3, 6, 3)
    conv.weight = nn.Parameter(stored(conv.weight.detach()))
    assert not conv.weight.is_contiguous()
    built = exported(randomised(Classifier(nn.Sequential(conv, nn.BatchNorm2d(6)), 6)), metadata)
    assert built.folds[0].action == "folded"


def test_synchronised_batch_norm_is_a_batch_norm(metadata):
    built = exported(
        randomised(Classifier(nn.Sequential(nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6)), 6)), metadata
    )
    assert built.folds[0].action == "folded"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_code_that_asks_for_float32_has_a_float64_reference(dtype, metadata):
    network = Calling(
        lambda self, x: self.norm(x.relu()).to(dtype).float() + torch.zeros(6, 1, 1, dtype=torch.float32),
        norm=nn.BatchNorm2d(6),
    )
    exported(randomised(network), metadata)
    reference = TorchReference(Normalized(network, metadata.mean, metadata.std).eval())
    images = np.full((1, *metadata.image.shape), 99, np.uint8)
    assert reference.exact_logits(images).dtype == np.float64
    assert reference.logits(images).dtype == np.float32
    assert torch.get_default_dtype() == torch.float32


class Branching(nn.Module):
    """A batch norm in a branch that is taken only for bright images."""

    def __init__(self, kept: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.kept = kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def bright(y: torch.Tensor) -> torch.Tensor:
            return self.norm(y if self.kept else self.conv(y))

        def dark(y: torch.Tensor) -> torch.Tensor:
            return y.clone() if self.kept else self.conv(y)

        given = self.conv(x) if self.kept else x
        return self.head(torch.cond(given.sum() > -1e9, bright, dark, (given,)).mean((2, 3)))


def all_operations(graph):
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            yield from all_operations(attribute.g)


@pytest.fixture
def fresh_compiler():
    """Give each test a compiler of its own: a compiled `torch.cond` fails for a network of other shapes."""
    torch._dynamo.reset()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.usefixtures("fresh_compiler")
def test_a_batch_norm_in_a_branch_is_taken_out_too(kept, metadata):
    built = exported(randomised(Branching(kept)), metadata)
    assert built.folds[0].action == "rewritten"
    operations = set(all_operations(onnx.load_from_string(built.content).graph))
    assert "If" in operations
    assert "BatchNormalization" not in operations


def test_graph_with_unfolded_batch_norm_in_a_branch_is_refused(metadata, monkeypatch):
    monkeypatch.setattr(FoldPass, "fold_batch_norms", lambda *_: [])
    with pytest.raises(TraceError, match="still holds BatchNormalization"):
        build_network(randomised(Branching(kept=True)), metadata)


def test_a_network_may_call_its_parameters_as_the_file_calls_its_tensors(metadata):
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("image", "logits", "probabilities", "softmax", "cast", "mean", "subtract_mean"):
                self.register_parameter(name, nn.Parameter(torch.rand(3, 1, 1)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(self.parameters(), x)

    class Network(Inner):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.ModuleDict({"image": Inner()}), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            own = [self.image, self.logits, self.probabilities, self.softmax]
            return self.head((self.inner["image"](x) + sum(own) + x).mean((2, 3)))

    exported(randomised(Network()), metadata)


def test_a_batch_norm_without_weights_keeps_its_name(metadata):
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6, affine=False), nn.Tanh())
    built = exported(randomised(Classifier(body, 6)), metadata)
    assert built.folds[0].name == "body.2"
    assert {"body.2.scale", "body.2.shift"} <= initializers(built)
