"""Convolutions with a single place are written as linear layers, and no others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from foldserve.export.errors import ParityError
from foldserve.export.graph import linear_convolutions
from foldserve.export.graph.linear_convolutions import write_linear_convolutions
from foldserve.export.graph.model_file import ModelFile
from foldserve.export.sources.torch_network import TorchNetwork
from foldserve.export.verification.divergence import first_divergence
from foldserve.export.verification.parity import check_parity
from foldserve.export.verification.reference import TorchReference
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized
from tests.support.torch_networks import build_network, randomised

CHANNELS, OUT = 6, 10


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(linear_convolutions, "_FEWEST", 1)


def graph_of(
    sides: list[int | str | None],
    kernel: list[int],
    *,
    bias: bool = True,
    shared: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """One convolution, or two of the same weight; the input's shape is known as far as ``sides`` says."""
    random = np.random.default_rng(len(kernel))
    groups = attributes.get("group", 1)
    weights = {"w": random.normal(size=(OUT, CHANNELS // groups, *kernel)), "b": random.normal(size=OUT)}
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [helper.make_node("Conv", inputs, ["y"], **attributes)]
    if shared:
        nodes += [helper.make_node("Conv", ["x", "w"], ["z"], **attributes)]
        nodes += [helper.make_node("Sub", ["y", "z"], ["d"])]
    shape = [None] * (2 + len(kernel))
    output = helper.make_tensor_value_info("d" if shared else "y", TensorProto.FLOAT, shape)
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, *sides])
    initializers = [
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    ]
    graph = helper.make_graph(nodes, "graph", [image], [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def rewritten(given: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(given)
    write_linear_convolutions(model.graph)
    result = ir.to_proto(model)
    onnx.checker.check_model(result)
    return result


def operations(model_proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model_proto.graph.node)


def run(model_proto: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": images})[0]


LINEAR = {
    "whole map": ([4, 3], [4, 3], {}),
    "no bias": ([4, 3], [4, 3], {"bias": False}),
    "one pixel": ([1, 1], [1, 1], {}),
    "strides, of one place": ([4, 4], [4, 4], {"strides": [4, 4]}),
    "pads of zero": ([4, 4], [4, 4], {"pads": [0, 0, 0, 0]}),
    "dilation of one pixel": ([1, 1], [1, 1], {"dilations": [2, 2]}),
    "valid": ([4, 4], [4, 4], {"auto_pad": "VALID"}),
    "one side": ([5], [5], {}),
}
OTHER = {
    "two places": ([4, 4], [4, 3], {}),
    "padded": ([4, 4], [4, 4], {"pads": [0, 0, 0, 1]}),
    "padded so that one place is left": ([2, 2], [4, 4], {"pads": [1, 1, 1, 1]}),
    "padded by rule": ([3, 3], [3, 3], {"auto_pad": "SAME_UPPER"}),
    "groups": ([4, 4], [4, 4], {"group": 2}),
    "dilated": ([3, 3], [2, 2], {"dilations": [2, 2]}),
    "unknown sides": (["H", "W"], [4, 4], {}),
    "one unknown side": ([4, None], [4, 4], {}),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("sides", "kernel", "settings"), LINEAR.values(), ids=LINEAR)
def test_a_convolution_of_one_place_becomes_a_linear_layer(sides, kernel, settings, count, any_size):
    given = graph_of(sides, kernel, **settings)
    result = rewritten(given)
    assert operations(result) == {"Flatten": 1, "Gemm": 1, "Unsqueeze": 1}
    images = np.random.default_rng(0).normal(size=(count, CHANNELS, *sides)).astype(np.float32)
    expected = run(given, images)
    assert expected.shape == (count, OUT) + (1,) * len(sides)
    np.testing.assert_allclose(run(result, images), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("sides", "kernel", "settings"), OTHER.values(), ids=OTHER)
def test_other_convolutions_stay(sides, kernel, settings, any_size):
    assert operations(rewritten(graph_of(sides, kernel, **settings))) == {"Conv": 1}


def test_a_weight_of_two_convolutions_serves_both(any_size):
    given = graph_of([4, 4], [4, 4], shared=True)
    result = rewritten(given)
    assert operations(result)["Gemm"] == 2
    images = np.random.default_rng(0).normal(size=(3, CHANNELS, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(result, images), run(given, images), rtol=0, atol=2e-5)


def test_small_weights_stay():
    assert operations(rewritten(graph_of([4, 4], [4, 4]))) == {"Conv": 1}


class FullyConvolutional(nn.Sequential):
    """A network whose fully connected layers are convolutions, as Caffe's and timm's VGG are."""

    def __init__(self, side: int, class_count: int) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 1024, side // 2),
            nn.BatchNorm2d(1024),
            nn.ReLU(),
            nn.Conv2d(1024, class_count, 1),
            nn.Flatten(),
        )


@pytest.fixture
def network(metadata):
    torch.manual_seed(3)
    return randomised(FullyConvolutional(metadata.image.height, len(metadata.labels)))


@pytest.fixture
def built(network, metadata):
    """The exported file; the weights of the second such layer are too few."""
    built = build_network(network, metadata)
    assert operations(onnx.load_from_string(built.content))["Gemm"] == 1
    return built


def check(content: bytes, network: nn.Module, metadata: Any) -> None:
    images = np.random.default_rng(6).integers(0, 256, (8, *metadata.image.shape), dtype=np.uint8)
    module = Normalized(network, metadata.mean, metadata.std).eval()
    check_parity(Session(content, device="cpu", intra_op_threads=1), TorchReference(module), images)


def test_the_folded_network_agrees(built, network, metadata):
    check(built.content, network, metadata)


def test_a_wrong_weight_is_refused_and_its_layer_named(built, network, metadata):
    """The twin."""
    model_proto = onnx.load_from_string(built.content)
    (tensor,) = (entry for entry in model_proto.graph.initializer if entry.name == "3.weight")
    array = numpy_helper.to_array(tensor).copy()
    assert array.shape == (1024, 8 * 6 * 6)
    array[5] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    content = model_proto.SerializeToString()
    with pytest.raises(ParityError, match="differ by up to"):
        check(content, network, metadata)
    module = Normalized(network, metadata.mean, metadata.std).eval()
    images = np.random.default_rng(6).integers(0, 256, (8, *metadata.image.shape), dtype=np.uint8)
    recorder = TorchNetwork(module, metadata.image.shape).layer_recorder()
    assert "the first layer to differ is 3 " in first_divergence(recorder, ModelFile(content), images)
