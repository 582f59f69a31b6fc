"""Weights that an ONNX file computes are constants: computed in float64, and rounded once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.artifact.format import read_artifact
from foldserve.export.pipeline import export_model
from foldserve.export.sources.onnx import prepare_graph
from foldserve.export.sources.onnx.float64_constants import compute_constants
from foldserve.export.sources.onnx.float64_graph import Float64Graph, TooLargeError
from tests.export.sources import test_onnx_file as files

if TYPE_CHECKING:
    from pathlib import Path

node = helper.make_node
RANDOM = np.random.default_rng(3)
WEIGHT = RANDOM.normal(0.1, 0.3, (8, 3, 3, 3)).astype(np.float32)
NORM = RANDOM.uniform(0.5, 1.5, (4, 8)).astype(np.float32)
HEAD = RANDOM.normal(size=(8, 4)).astype(np.float32)
AXES = np.array([1, 2, 3])
CLASSES = 4

STANDARDISED = [
    node("ReduceMean", ["weight", "axes"], ["mean"]),
    node("Sub", ["weight", "mean"], ["centred"]),
    node("Mul", ["centred", "centred"], ["squares"]),
    node("ReduceMean", ["squares", "axes"], ["variance"]),
    node("Add", ["variance", "epsilon"], ["more"]),
    node("Sqrt", ["more"], ["deviation"]),
    node("Div", ["centred", "deviation"], ["made"]),
]


def network(*weights: onnx.NodeProto) -> onnx.ModelProto:
    """A convolution with the weights ``made``, batch norm and a linear layer."""
    arrays = {
        "weight": WEIGHT,
        "axes": AXES,
        "epsilon": np.array(1e-5, np.float32),
        "head": HEAD,
        "two": np.array(2, np.float32),
        "large": np.array(3 * 2**22, np.float32),
        "zero point": np.array(0, np.int8),
        **{f"norm{index}": row for index, row in enumerate(NORM)},
    }
    nodes = [
        *weights,
        node("Conv", ["image", "made"], ["features"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["features", *(f"norm{index}" for index in range(4))], ["normal"]),
        node("Relu", ["normal"], ["positive"]),
        node("GlobalAveragePool", ["positive"], ["mean of map"]),
        node("Flatten", ["mean of map"], ["flat"]),
        node("MatMul", ["flat", "head"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "computed",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model_proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model_proto)
    return model_proto


def standardised(kind: type[np.floating]) -> np.ndarray:
    weight = WEIGHT.astype(kind)
    centred = weight - weight.mean((1, 2, 3), keepdims=True, dtype=kind)
    variance = (centred * centred).mean((1, 2, 3), keepdims=True, dtype=kind)
    return np.asarray(centred / np.sqrt(variance + kind(np.float32(1e-5))))


def folded(weight: np.ndarray) -> np.ndarray:
    """The weights after batch norm and the input's scaling, in the precision of ``weight``."""
    scale, _, _, variance = (row.astype(np.float64) for row in NORM)
    per_channel = scale / np.sqrt(variance + np.float32(1e-5))
    std = np.array(files.STD).reshape(1, 3, 1, 1)
    return np.asarray(weight * per_channel.reshape(-1, 1, 1, 1) / (255 * std))


def published_weight(path: Path, folder: Path) -> np.ndarray:
    assert export_model(files.config(path)) == 0
    model_proto = onnx.load_from_string(read_artifact(folder / "models/adopted/1").model)
    operations = [entry.op_type for entry in model_proto.graph.node]
    assert "Sqrt" not in operations
    assert operations.count("ReduceMean") == 2, "of the map before the last layer, none of the weights"
    (conv,) = (entry for entry in model_proto.graph.node if entry.op_type == "Conv")
    (tensor,) = (entry for entry in model_proto.graph.initializer if entry.name == conv.input[1])
    return numpy_helper.to_array(tensor)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("\n".join(files.LABELS) + "\n")
    return files.save(network(*STANDARDISED), tmp_path)


def error_in_units(weight: np.ndarray) -> float:
    exact = folded(standardised(np.float64))
    return float((np.abs(weight - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


def test_standardised_weights_are_rounded_once(path, tmp_path):
    assert error_in_units(published_weight(path, tmp_path)) <= 0.51


def test_in_float32_they_would_be_further_off(path, tmp_path, monkeypatch):
    """The twin: as the optimiser computes them."""
    monkeypatch.setattr(prepare_graph, "compute_constants", lambda *_: {})
    assert error_in_units(published_weight(path, tmp_path)) > 1


LEFT = {
    "moved": [node("Identity", ["weight"], ["made"])],
    "rounded": [
        node("Mul", ["weight", "two"], ["doubled"]),
        node("Cast", ["doubled"], ["half"], to=TensorProto.FLOAT16),
        node("Cast", ["half"], ["made"], to=TensorProto.FLOAT),
    ],
    "quantised": [
        node("QuantizeLinear", ["weight", "two", "zero point"], ["bytes"]),
        node("DequantizeLinear", ["bytes", "two", "zero point"], ["made"]),
    ],
    "rounded by adding": [
        node("Add", ["weight", "large"], ["whole"]),
        node("Sub", ["whole", "large"], ["made"]),
    ],
    "computed otherwise by the evaluator": [node("LpNormalization", ["weight"], ["made"], axis=1, p=1)],
    "random": [
        node("RandomNormalLike", ["weight"], ["noise"]),
        node("Add", ["weight", "noise"], ["made"]),
    ],
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_moved_rounded_or_random_is_left(case):
    model_proto = network(*LEFT[case])
    arrays = compute_constants(model_proto)
    assert "made" not in arrays
    if case == "rounded":  # up to the rounding
        assert np.array_equal(arrays["doubled"], 2 * WEIGHT.astype(np.float64))
    else:
        assert not arrays


def test_what_is_much_larger_than_its_origin_stays_computed():
    column = RANDOM.normal(size=(2000, 1)).astype(np.float32)
    graph = helper.make_graph(
        [
            node("MatMul", ["column", "row"], ["table"]),
            node("MatMul", ["image", "table"], ["scores"]),
        ],
        "table",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 2000])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 2000])],
        [numpy_helper.from_array(column, "column"), numpy_helper.from_array(column.T.copy(), "row")],
    )
    model_proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert compute_constants(model_proto) == {}
    assert len(model_proto.graph.node) == 2


TOO_LARGE = {
    # 8 TB each, from 8 MB or less.
    "in the end": [node("MatMul", ["column", "row"], ["table"])],
    "on the way": [
        node("MatMul", ["column", "row"], ["products"]),
        node("ReduceSum", ["products", "axis"], ["table"], keepdims=0),
    ],
    "by numbers that are computed": [
        node("Add", ["number", "number"], ["twice"]),
        node("Shape", ["column"], ["sides"]),
        node("Concat", ["sides", "sides"], ["more sides"], axis=0),
        node("Expand", ["twice", "more sides"], ["table"]),
    ],
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_sizes_are_checked_before_anything_is_computed(case):
    column = np.ones((10**6, 1), np.float32)
    arrays = {
        "column": column,
        "row": column.T.copy(),
        "axis": np.array([0]),
        "number": np.ones(1, np.float32),
    }
    graph = helper.make_graph(
        [*TOO_LARGE[case], node("Mul", ["image", "table"], ["scores"])],
        "table",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model_proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    seen: list[str] = []
    compute = Float64Graph.run

    def run(self, feeds):
        with pytest.raises(TooLargeError) as raised:
            compute(self, feeds)
        seen.append(str(raised.value))
        raise raised.value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Float64Graph, "run", run)
        assert compute_constants(model_proto) == {}
    assert len(seen) == 1


def test_a_number_of_entries_that_depends_on_rounding_is_the_files():
    """7 / 0.7 is a little more than 10 in float32, so that the file counts 11."""
    arrays = {"zero": 0, "seven": 7, "ten": 10, "one": 1, "column": np.ones((4, 1))}
    graph = helper.make_graph(
        [
            node("Div", ["seven", "ten"], ["step"]),
            node("Range", ["zero", "seven", "step"], ["steps"]),
            node("Mul", ["column", "steps"], ["made"]),
            node("MatMul", ["image", "made"], ["scores"]),
        ],
        "steps",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 11])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()],
    )
    model_proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert compute_constants(model_proto) == {}
