"""The float64 references: the same numbers in parts, with bounded memory."""

import itertools
import tracemalloc

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from foldserve.export.sources.onnx.float64_graph import Float64Graph
from foldserve.export.verification import float64, reference
from foldserve.export.verification.reference import TorchReference
from foldserve.runtime.session import Session
from foldserve.training.models import Normalized


@pytest.fixture(params=[1, 20_000, 10**9], ids=["one row and channel", "some rows", "all at once"])
def parts(request, monkeypatch):
    monkeypatch.setattr(float64, "_PART_BYTES", request.param)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        pytest.param((3, 3), {"padding": 1}, id="padded"),
        pytest.param((3, 5), {"padding": (1, 2), "stride": (2, 3)}, id="strided, not square"),
        pytest.param((3, 3), {"padding": 2, "dilation": (2, 1), "groups": 2}, id="dilated, grouped"),
        pytest.param((1, 1), {}, id="1x1"),
        pytest.param((11, 11), {"stride": 4, "padding": 2}, id="kernel nearly as large as the image"),
        pytest.param((3, 3), {"padding": "same"}, id="padding by name"),
    ],
)
def test_convolution_in_parts_is_the_convolution(kernel, options, parts):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 13, 17)
    weight, bias = torch.randn(6, 4 // options.get("groups", 1), *kernel), torch.randn(6)
    actual = float64.conv2d_in_parts(x, weight, bias, **options)
    expected = torch.conv2d(x.double(), weight.double(), bias.double(), **options)
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_a_large_weight_is_not_held_in_float64(monkeypatch):
    """A fully connected layer as a convolution: 25,088 inputs and 4,096 outputs take 0.8 GB in float64."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, 7, 7), torch.randn(64, 16, 7, 7)
    monkeypatch.setattr(float64, "_PART_BYTES", weight.nbytes // 4)
    sizes = []
    convolution = torch.conv2d

    def noting(x, weight, *rest):
        sizes.append(weight.nbytes)
        return convolution(x, weight, *rest)

    monkeypatch.setattr(torch, "conv2d", noting)
    actual = float64.conv2d_in_parts(x, weight)
    assert max(sizes) <= weight.nbytes // 4
    torch.testing.assert_close(actual, convolution(x.double(), weight.double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 30), (2, 7, 30)])
def test_linear_in_parts_is_the_linear_layer(shape, parts):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(50, 30), torch.randn(50)
    actual = float64.linear_in_parts(x, weight, bias)
    torch.testing.assert_close(actual, F.linear(x.double(), weight.double(), bias.double()))
    assert actual.dtype == torch.float64
    assert float64.linear_in_parts(x, weight).shape == actual.shape


class Network(nn.Module):
    """A convolution and a linear layer that the float64 reference takes in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8 * 20 * 20, 5)

    def forward(self, x):
        return self.linear(torch.relu(self.norm(self.conv(x))).flatten(1))


def reference_of(network: nn.Module) -> TorchReference:
    return TorchReference(Normalized(network.eval(), (0.5,), (0.25,)).eval())


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 1, 20, 20), dtype=np.uint8)


def doubled_logits(network: nn.Module, images) -> np.ndarray:
    """Return float64 logits as PyTorch gives them for a network whose weights are all float64."""
    copied = Normalized(network, (0.5,), (0.25,)).eval().double()
    with torch.no_grad():
        pixels = torch.from_numpy(images).double() / 255
        return copied.network((pixels - copied.mean.double()) / copied.std.double()).numpy()


def test_exact_logits_are_those_of_float64_weights_and_weights_stay_float32(images, monkeypatch):
    torch.manual_seed(0)
    network = Network()
    monkeypatch.setattr(float64, "_PART_BYTES", 1000)
    exact = reference_of(network).exact_logits(images)
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    expected = doubled_logits(network, images)
    assert exact.dtype == np.float64
    assert np.abs(exact - expected).max() < 1e-12
    # A twin: float32 is not as close.
    assert np.abs(reference_of(network.float()).logits(images) - expected).max() > 1e-9


def test_large_activations_make_small_batches(images, monkeypatch):
    torch.manual_seed(0)
    network = Network()
    batches = []
    network.conv.register_forward_hook(
        lambda _module, _given, result: batches.append((len(result), result.nbytes))
    )
    of_one = 8 * 20 * 20 * 8  # bytes of the convolution's output for one image in float64
    monkeypatch.setattr(reference, "_TENSOR_BYTES", 3 * of_one)
    exact = reference_of(network).exact_logits(images)
    assert [count for count, _ in batches] == [1, 3, 3, 3, 2]
    batches.clear()
    logits = reference_of(network).logits(images)
    assert [count for count, _ in batches] == [1, 6, 5]  # float32 is half as large
    assert exact.shape == logits.shape == (12, 5)
    assert np.abs(exact - logits).max() < 1e-4


class Viewing(nn.Module):
    """Views its weights, and repeats numbers, as tensors much larger than what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.table = nn.Parameter(torch.randn(1000, 3200) / 100)

    def forward(self, x):
        features = self.conv(x).flatten(1)
        first, _ = self.table.view(2, 500, 3200).unbind()
        one = torch.ones(1, 1, 1).expand(1, 1000, 3200)
        return features @ first.T.data[:, :5] + one.sum((1, 2))[:, None] / 1e9


def test_views_do_not_count_as_the_largest_tensor(images):
    """Else batches would be as small as if each image had a tensor of the size of all weights."""
    torch.manual_seed(0)
    network = reference_of(Viewing())
    logits = network.logits(images)
    assert network.image_bytes == 8 * 20 * 20 * 4
    assert np.abs(network.exact_logits(images) - logits).max() < 1e-4


def test_views_do_not_count_in_a_graph():
    nodes = [
        helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        helper.make_node("Slice", ["turned", "zero", "side", "zero"], ["matrix"]),
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
    ]
    arrays = {
        "weight": np.ones((3, 5000), np.float32),
        "shape": np.array([0, -1]),
        "zero": np.array([0]),
        "side": np.array([400]),
    }
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", ["n", 1, 20, 20]), ("logits", ["n", 3]))
    )
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "views", [image], [logits], weights)
    opsets = [helper.make_opsetid("", 18)]
    content = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    computed = Float64Graph(content)
    computed.run({"image": np.ones((2, 1, 20, 20))})
    assert computed.largest_bytes == 2 * 3 * 8  # the logits


class Counting(nn.Module):
    """Keeps a running value in a float32 buffer, which it writes in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(400, 5)
        self.register_buffer("scratch", torch.zeros(5))

    def forward(self, x):
        self.scratch.zero_()
        self.scratch += self.linear.bias
        return F.linear(x.flatten(1), self.linear.weight) + self.scratch


def test_a_buffer_that_is_written_is_computed_on_a_copy(images):
    torch.manual_seed(0)
    network = Counting()
    exact = reference_of(network).exact_logits(images)
    assert np.abs(exact - doubled_logits(network, images)).max() < 1e-12


@pytest.mark.filterwarnings("ignore")  # PyTorch warns of TorchScript in general
def test_scripted_code_is_computed_on_a_copy(images):
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.script(nn.Linear(400, 5))

        def forward(self, x):
            return self.inner(x.flatten(1))

    torch.manual_seed(0)
    network = Scripted()
    exact = reference_of(network).exact_logits(images)
    with torch.no_grad():
        pixels = (torch.from_numpy(images).double() / 255 - 0.5) / 0.25
        expected = pixels.flatten(1) @ network.inner.weight.double().T + network.inner.bias.double()
    assert np.abs(exact - expected.numpy()).max() < 1e-12


def chain(length: int, end: str = "") -> bytes:
    """Return a file of ``length`` convolutions that keep the size, then a Gemm."""
    random = np.random.default_rng(0)
    nodes, weights, value = [], [], "image"
    for index in range(length):
        weights.append(
            numpy_helper.from_array(random.normal(0, 0.5, (4, 4, 1, 1)).astype(np.float32), f"w{index}")
        )
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"v{index}"]))
        value = f"v{index}"
    weights.append(numpy_helper.from_array(random.normal(0, 0.1, (4 * 64 * 64, 3)).astype(np.float32), "g"))
    weights.append(numpy_helper.from_array(np.arange(3, dtype=np.float32), "b"))
    nodes += [
        helper.make_node("Flatten", [value], ["flat"]),
        helper.make_node("Gemm", ["flat", "g", "b"], ["logits"]),
    ]
    if end:
        nodes.append(helper.make_node(end, ["logits", "v0"], ["last"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 4, 64, 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        weights,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()


def negations(length: int) -> bytes:
    """Return a file that negates an image ``length`` times: numpy's memory is traced, PyTorch's is not."""
    names = ["image", *(f"v{index}" for index in range(length - 1)), "logits"]
    nodes = [helper.make_node("Neg", [name], [result]) for name, result in itertools.pairwise(names)]
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 64, 64])
        for name in ("image", "logits")
    )
    graph = helper.make_graph(nodes, "negations", [image], [logits])
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def test_graph_releases_values_once_they_were_read():
    image = np.random.default_rng(1).normal(size=(4, 4, 64, 64))
    graph = Float64Graph(negations(40))
    graph.run({"image": image})  # what is loaded once is not counted
    tracemalloc.start()
    logits = graph.run({"image": image})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * image.nbytes  # of 40 values of that size
    assert graph.largest_bytes == image.nbytes
    assert np.array_equal(logits, image)


def weights_of_numbers(count: int) -> bytes:
    """A chain of products with matrices that ConstantOfShape makes, all of them in front."""
    shape = helper.make_tensor("value", TensorProto.FLOAT, [1], [1 / 512])
    nodes = [helper.make_node("ConstantOfShape", ["sides"], [f"w{i}"], value=shape) for i in range(count)]
    nodes += [helper.make_node("Neg", [f"w{i}"], [f"v{i}"]) for i in range(count)]
    names = ["image", *(f"y{i}" for i in range(count - 1)), "logits"]
    nodes += [helper.make_node("MatMul", [names[i], f"v{i}"], [names[i + 1]]) for i in range(count)]
    image, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 512]) for name in ("image", "logits")
    )
    sides = numpy_helper.from_array(np.array([512, 512], np.int64), "sides")
    graph = helper.make_graph(nodes, "numbers", [image], [logits], [sides])
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def test_graph_makes_weights_when_they_are_read():
    """The classifiers in the `onnx` wheel make all weights of numbers first; VGG-19's take 1.2 GB."""
    image = np.random.default_rng(1).normal(size=(2, 512))
    graph = Float64Graph(weights_of_numbers(20))
    graph.run({"image": image})
    tracemalloc.start()
    logits = graph.run({"image": image})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * 512 * 512 * 8  # of 40 of that size
    expected = image
    for _ in range(20):
        expected = expected @ np.full((512, 512), -1 / 512)
    np.testing.assert_allclose(logits, expected, rtol=1e-9)


def test_graph_agrees_with_the_evaluator_in_float64():
    content = chain(3)
    image = np.random.default_rng(1).normal(size=(2, 4, 64, 64))
    model_proto = onnx.load_from_string(content)
    value, arrays = (
        image,
        {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model_proto.graph.initializer},
    )
    for index in range(3):
        value = np.einsum("oi,nihw->nohw", arrays[f"w{index}"][:, :, 0, 0], value)
    expected = value.reshape(2, -1) @ arrays["g"] + arrays["b"]
    assert np.abs(Float64Graph(content).run({"image": image}) - expected).max() < 1e-10


POOLING = {
    "plain": {"kernel_shape": [3, 2], "strides": [2, 1]},
    "no stride": {"kernel_shape": [2, 2]},
    "border": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "border at one end": {"kernel_shape": [3, 3], "strides": [1, 2], "pads": [0, 0, 1, 2]},
    "rounded up": {"kernel_shape": [3, 3], "strides": [2, 3], "ceil_mode": 1},
    "rounded up, with a border": {
        "kernel_shape": [2, 3],
        "strides": [3, 2],
        "pads": [0, 1, 1, 0],
        "ceil_mode": 1,
    },
    "no window behind the border": {
        "kernel_shape": [2, 2],
        "strides": [4, 4],
        "pads": [0, 0, 1, 1],
        "ceil_mode": 1,
    },
    "same": {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
}
AVERAGE = POOLING | {
    "border counted": {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1], "count_include_pad": 1},
}
LARGEST = POOLING | {"dilated": {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [1, 2]}}
NODES = [
    *(pytest.param("AveragePool", options, id=f"average, {name}") for name, options in AVERAGE.items()),
    *(pytest.param("MaxPool", options, id=f"largest, {name}") for name, options in LARGEST.items()),
    pytest.param("LRN", {"size": 5, "alpha": 0.1, "beta": 0.75, "bias": 2.0}, id="LRN"),
    pytest.param("Relu", {}, id="ReLU"),
    pytest.param("BatchNormalization", {"epsilon": 0.1}, id="batch norm"),
]


@pytest.mark.parametrize(("operation", "options"), NODES)
def test_operation_computes_what_onnx_runtime_does(operation, options):
    random = np.random.default_rng(0)
    image = random.normal(size=(2, 6, 11, 12)).astype(np.float32)
    weights = []
    if operation == "BatchNormalization":
        arrays = random.uniform(0.5, 2, (4, 6)).astype(np.float32)
        weights = [numpy_helper.from_array(array, f"w{index}") for index, array in enumerate(arrays)]
    names = [tensor.name for tensor in weights]
    given, result = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 6, None, None]) for name in ("x", "y")
    )
    node = helper.make_node(operation, ["x", *names], ["y"], **options)
    graph = helper.make_graph([node], "one", [given], [result], weights)
    content = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()
    actual = Float64Graph(content).run({"x": image.astype(np.float64)})
    expected = Session(content, device="cpu", intra_op_threads=1, optimised=False).run(["y"], {"x": image})[0]
    assert actual.dtype == np.float64
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < 2e-6


def test_one_image_is_run_alone_only_if_the_size_of_tensors_is_not_known(images):
    """Float64 copies all weights for each batch, which takes as long as some images."""
    torch.manual_seed(0)
    network = Network()
    batches: list[int] = []
    network.conv.register_forward_hook(lambda _module, given, _result: batches.append(len(given[0])))
    first = reference_of(network)
    first.exact_logits(images)
    assert batches == [1, 11]
    batches.clear()
    known = reference_of(network)
    logits = known.logits(images)
    exact = known.exact_logits(images)
    assert batches == [1, 11, 12]
    assert np.abs(exact - logits).max() < 1e-4
