"""More weights than one ONNX file holds are refused before anything is done with them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from foldserve.export.errors import SourceError
from foldserve.export.sources.onnx.read import read_onnx
from foldserve.export.sources.weight_size import check_module_size


def linear(inputs: int, outputs: int) -> nn.Module:
    with torch.device("meta"):  # no memory is taken
        return nn.Linear(inputs, outputs)


def test_a_network_above_two_gib_is_refused():
    with pytest.raises(SourceError, match=r"nets:make has 2\.01 GiB of weights; .* at most 2 GiB"):
        check_module_size(linear(12_000, 45_000), "nets:make")
    check_module_size(linear(11_000, 45_000), "nets:make")


def test_tied_weights_count_once():
    layer = linear(11_000, 30_000)
    check_module_size(nn.ModuleList([layer, layer, layer]), "nets:make")


@pytest.mark.parametrize(("rows", "is_refused"), [(45_000, True), (11_000, False)])
def test_a_file_whose_external_data_is_above_two_gib_is_refused_before_it_is_read(rows, is_refused, tmp_path):
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[12_000, rows])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="absent.bin")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 40, 100])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", rows])],
        [weight],
    )
    path = tmp_path / "large.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    message = r"2\.01 GiB of weights" if is_refused else r"absent\.bin beside it, which cannot be read"
    with pytest.raises(SourceError, match=message):
        read_onnx(path)


@pytest.mark.parametrize(("rows", "is_refused"), [(45_000, True), (11_000, False)])
def test_weights_that_a_file_makes_of_one_number_count(rows, is_refused, tmp_path):
    """A file of 200 bytes must not take all memory."""
    sides = numpy_helper.from_array(np.array([12_000, rows]), "sides")
    nodes = [
        helper.make_node("ConstantOfShape", ["sides"], ["w"]),
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 40, 100])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", rows])],
        [sides],
    )
    path = tmp_path / "made.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    if is_refused:
        with pytest.raises(SourceError, match=r"2\.01 GiB of weights"):
            read_onnx(path)
    else:
        assert read_onnx(path).model_proto.graph.node
