"""The figures of `foldserve inspect` against values worked out by hand."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from foldserve.artifact.format import ModelMetadata
from foldserve.export.errors import SourceError
from foldserve.export.graph.trace import trace
from foldserve.export.inspection.layers import Layer, analyse
from foldserve.imaging import ImageSpec
from foldserve.training.models import MODELS, create_model
from tests.support.graphs import chain
from tests.support.torch_networks import (
    ChannelShuffle,
    Classifier,
    Inception,
    InvertedResidual,
    build_network,
    randomised,
)

FASHION = {"in_channels": 1, "class_count": 10, "height": 28, "width": 28}


def layers_of(network: nn.Module, shape: tuple[int, int, int]) -> list[Layer]:
    names = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    return analyse(trace(network.eval(), shape).model, shape, names)


def layers_of_chain(*nodes, shape: tuple[int, ...] = (3, 16, 16)) -> list[Layer]:
    return analyse(ir.from_proto(chain(*nodes, shape=shape)), shape)


def field(layer: Layer) -> tuple[int, ...]:
    assert layer.field is not None
    return layer.field.size


@pytest.fixture(scope="module")
def lenet_layers() -> list[Layer]:
    return layers_of(create_model("lenet", **FASHION), (1, 28, 28))


def test_three_to_four_channels_take_three_times_four_kernels():
    (layer,) = layers_of_chain(("Conv", {"weight": [4, 3, 5, 2]}, {}))
    assert layer.parameters == 3 * 4 * 5 * 2
    assert layer.output == (4, 16 - 4, 16 - 1)
    assert layer.macs == 12 * 15 * (3 * 4 * 5 * 2)
    assert layer.window is not None
    assert layer.window.kernel == (5, 2)
    assert field(layer) == (5, 2)


def test_bias_has_one_parameter_per_channel_and_no_macs():
    (with_bias,) = layers_of_chain(("Conv", {"weight": [4, 3, 3, 3], "bias": [4]}, {}))
    (without,) = layers_of_chain(("Conv", {"weight": [4, 3, 3, 3]}, {}))
    assert with_bias.parameters == without.parameters + 4
    assert with_bias.macs == without.macs


def test_two_3x3_see_as_far_as_one_5x5_with_18_weights_a_channel_pair_instead_of_25():
    five, three = ("Conv", {"weight": [1, 1, 5, 5]}, {}), ("Conv", {"weight": [1, 1, 3, 3]}, {})
    (one,), two = layers_of_chain(five, shape=(1, 16, 16)), layers_of_chain(three, three, shape=(1, 16, 16))
    assert field(one) == field(two[-1]) == (5, 5)
    assert one.parameters == 25
    assert sum(layer.parameters for layer in two) == 18


def test_2x2_pooling_doubles_the_jump():
    pool, conv = layers_of_chain(
        ("MaxPool", {}, {"kernel_shape": [2, 2], "strides": [2, 2]}), ("Conv", {"weight": [3, 3, 3, 3]}, {})
    )
    assert pool.field is not None
    assert (pool.field.size, pool.field.jump, pool.output) == ((2, 2), (2, 2), (3, 8, 8))
    assert field(conv) == (2 + 2 * 2,) * 2  # two more values, each 2 pixels further
    assert (pool.parameters, pool.macs) == (0, 0)


def test_stride_dilation_and_padding_are_those_of_the_convolution():
    first, second = layers_of_chain(
        ("Conv", {"weight": [2, 3, 3, 3]}, {"strides": [2, 1], "pads": [1, 0, 1, 0]}),
        ("Conv", {"weight": [2, 2, 3, 3]}, {"dilations": [2, 2]}),
    )
    assert first.output == (2, 8, 14)
    assert first.window is not None
    assert (first.window.stride, first.window.padding) == ((2, 1), ((1, 1), (0, 0)))
    assert second.window is not None
    assert second.window.dilation == (2, 2)
    assert second.output == (2, 4, 10)
    assert field(second) == (3 + 2 * 2 * 2, 3 + 2 * 2 * 1)


def test_groups_divide_weights_and_multiplications():
    (layer,) = layers_of_chain(("Conv", {"weight": [8, 1, 3, 3]}, {"group": 4}), shape=(4, 6, 6))
    assert layer.parameters == 8 * 1 * 9
    assert layer.macs == 4 * 4 * 8 * 9
    assert layer.window is not None
    assert layer.window.groups == 4


def test_a_transposed_convolution_spreads_each_value():
    transposed = ("ConvTranspose", {"weight": [3, 5, 2, 2]}, {"strides": [2, 2]})
    (layer,) = layers_of_chain(transposed, shape=(3, 4, 4))
    assert layer.output == (5, 8, 8)
    assert layer.macs == (3 * 4 * 4) * (5 * 2 * 2)
    assert layer.field is None  # how many values it sees depends on the position


def test_batch_norm_has_gamma_and_beta_as_parameters_and_sees_no_further():
    conv, norm = layers_of_chain(
        ("Conv", {"weight": [4, 3, 3, 3]}, {}),
        ("BatchNormalization", {"weight": [4], "bias": [4], "mean": [4], "var": [4]}, {}),
    )
    assert (norm.kind, norm.parameters, norm.macs) == ("BatchNorm", 8, 0)
    assert field(norm) == field(conv)


def test_lenet_is_the_table_of_its_module(lenet_layers: list[Layer]):
    found = [(x.kind, x.output, x.parameters, x.macs, field(x)[0]) for x in lenet_layers]
    c1, c3, c5 = 25 * 16, 25 * 16 * 32, 25 * 32 * 84
    assert found == [
        ("Conv", (16, 28, 28), c1, c1 * 28 * 28, 5),
        ("BatchNorm", (16, 28, 28), 32, 0, 5),
        ("ReLU", (16, 28, 28), 0, 0, 5),
        ("MaxPool", (16, 14, 14), 0, 0, 6),
        ("Conv", (32, 10, 10), c3, c3 * 10 * 10, 14),
        ("BatchNorm", (32, 10, 10), 64, 0, 14),
        ("ReLU", (32, 10, 10), 0, 0, 14),
        ("MaxPool", (32, 5, 5), 0, 0, 16),
        ("Conv", (84, 1, 1), c5, c5, 32),
        ("BatchNorm", (84, 1, 1), 168, 0, 32),
        ("ReLU", (84, 1, 1), 0, 0, 32),
        ("Flatten", (84,), 0, 0, 32),
        ("Linear", (84,), 84 * 84 + 84, 84 * 84, 32),
        ("ReLU", (84,), 0, 0, 32),
        ("Linear", (10,), 84 * 10 + 10, 840, 32),
    ]


def test_layers_have_the_names_of_their_modules(lenet_layers: list[Layer]):
    names = [layer.name for layer in lenet_layers]
    assert names[:4] == ["features.0.conv", "features.0.norm", "features.0.activation", "features.1"]
    assert names[-1] == "classifier.5"


def test_alexnets_last_pooling_sees_195_pixels_of_imagenet():
    """11, then 3 at jump 4, 5 at 8, 3 at 8, thrice 3 at 16, 3 at 16: the figure of the literature."""
    arguments = {"in_channels": 3, "class_count": 10, "height": 224, "width": 224, "width_factor": 0.02}
    layers = layers_of(create_model("alexnet", **arguments), (3, 224, 224))
    pools = [layer for layer in layers if layer.kind == "MaxPool"]
    assert [field(pool)[0] for pool in pools] == [19, 67, 195]
    flatten = next(index for index, layer in enumerate(layers) if layer.kind == "Flatten")
    assert field(layers[flatten]) == (195, 195)
    assert field(layers[flatten + 1])[0] == 195 + 5 * 32  # fc6 joins the 6x6 positions


def test_a_residual_sum_sees_what_its_longer_branch_sees():
    arguments = {"in_channels": 1, "class_count": 10, "height": 28, "width": 28, "depth": 8}
    layers = {layer.name: layer for layer in layers_of(create_model("resnet", **arguments), (1, 28, 28))}
    # Stem 3, stage 1 adds 2 + 2; stage 2 is 3x3 with stride 2, then 3x3 at jump 2; the shortcut is 1x1.
    assert field(layers["stage1.0"]) == (7, 7)
    assert field(layers["stage2.0.shortcut.conv"]) == (7, 7)
    assert field(layers["stage2.0"]) == (7 + 2 + 4,) * 2
    assert field(layers["stage3.0"]) == (13 + 2 * 2 + 2 * 4,) * 2
    assert field(layers["classifier.0"]) == (25 + 6 * 4,) * 2  # the mean joins 7x7 positions


@pytest.mark.parametrize(
    ("arch", "batch_norm"), [("lenet", False), ("alexnet", True), ("resnet", True), ("resnet", False)]
)
def test_totals_are_those_pytorch_counts_itself(arch: str, batch_norm: bool):
    small = {"depth": 8} if arch == "resnet" else {}
    network = create_model(arch, **FASHION, **small, batch_norm=batch_norm).eval()
    macs = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * math.prod(module.weight.shape[1:])

    hooks = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    network(torch.zeros(1, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    layers = layers_of(network, (1, 28, 28))
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in network.parameters())
    assert sum(layer.macs for layer in layers) == macs


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(ChannelShuffle(), 3, id="channel shuffle"),
        pytest.param(Inception(), 5, id="branches joined"),
        # The squeezed branch sees the whole map of 12 pixels: 3 and eleven steps further.
        pytest.param(InvertedResidual(), 3 + 11, id="squeeze and excite"),
    ],
)
def test_the_widest_branch_counts(body: nn.Module, expected: int):
    layers = layers_of(Classifier(body, _channels(body)), (3, 12, 12))
    last_map = [layer for layer in layers if layer.output[1:] == (12, 12)][-1]
    assert field(last_map) == (expected, expected)


def _channels(body: nn.Module) -> int:
    return body(torch.zeros(2, 3, 12, 12)).shape[1]


@pytest.mark.parametrize("arch", sorted(MODELS))
def test_the_exported_file_has_the_multiplications_and_fields_of_its_network(arch: str):
    small = {"depth": 8} if arch == "resnet" else {}
    network = randomised(create_model(arch, **FASHION, **small))
    spec = ImageSpec(channel_order="L", height=28, width=28, resize_shorter_side=28)
    metadata = ModelMetadata(tuple("abcdefghij"), (0.3,), (0.4,), spec)
    content = build_network(network, metadata).content
    in_file = analyse(ir.from_proto(onnx.load_from_string(content)), (1, 28, 28))
    in_torch = layers_of(network, (1, 28, 28))

    def figures(layers: list[Layer]) -> list[tuple]:
        return [(x.kind, x.output, x.window, x.macs, x.field) for x in layers if x.macs]

    assert figures(in_file) == figures(in_torch)
    # Folding leaves a bias a channel where there were gamma and beta; the subtracted mean is a constant too.
    norms = sum(layer.parameters for layer in in_torch if layer.kind == "BatchNorm")
    expected = sum(layer.parameters for layer in in_torch) - norms // 2 + 1
    assert sum(layer.parameters for layer in in_file) == expected


def test_a_weight_used_twice_counts_once_and_multiplies_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(self.conv(images)).flatten(1)

    first, second, _ = layers_of(Twice(), (3, 4, 4))
    assert (first.parameters, second.parameters) == (81, 0)
    assert first.macs == second.macs == 81 * 16


def test_layers_in_files_of_other_tools_are_analysed():
    """No kernel_shape, padding chosen by itself, a matrix product with its bias apart."""
    conv, pool, _, product, bias = layers_of_chain(
        ("Conv", {"w": [4, 3, 3, 3]}, {"name": "first", "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("GlobalAveragePool", {}, {}),
        ("Flatten", {}, {}),
        ("MatMul", {"w": [4, 2]}, {}),
        ("Add", {"b": [2]}, {}),
        shape=(3, 9, 9),
    )
    assert conv.window is not None
    assert (conv.name, conv.output, conv.macs) == ("first", (4, 5, 5), 25 * 4 * 27)
    assert (conv.window.kernel, conv.window.padding) == ((3, 3), None)
    assert field(pool) == (3 + 4 * 2,) * 2
    assert (product.macs, product.parameters, bias.parameters) == (8, 8, 2)
    assert field(bias) == field(pool)


def test_a_resized_map_has_no_field_instead_of_a_wrong_one():
    conv, unpooled, after = layers_of_chain(
        ("Conv", {"w": [4, 3, 3, 3]}, {}),
        ("DepthToSpace", {}, {"blocksize": 2}),
        ("Conv", {"w": [4, 1, 3, 3]}, {}),
    )
    assert conv.field is not None
    assert unpooled.field is None
    assert after.field is None
    assert after.macs == 26 * 26 * 4 * 9


def test_a_graph_that_does_not_take_the_image_is_refused():
    linear = chain(("Flatten", {}, {}), ("Gemm", {"w": [12, 2]}, {}), shape=(3, "H", "W"))
    assert analyse(ir.from_proto(linear), (3, 2, 2))[-1].output == (2,)
    with pytest.raises(SourceError, match=r"does not take images of \[3, 4, 4\]"):
        analyse(ir.from_proto(linear), (3, 4, 4))
