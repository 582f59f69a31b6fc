"""Small ONNX graphs with batch norm, folded by the pass alone: no tracing, so a test costs milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from foldserve.export.graph.fold_pass import Fold, FoldPass
from foldserve.export.graph.weights import Float64Initializers
from foldserve.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Relative to the largest answer. Float32 through two or three layers is 1e-6; a wrong fold is 1e-2 and more.
TOLERANCE = 1e-5

Arrays = dict[str, "NDArray[Any]"]


def node(operation: str, wires: str, **attributes: Any) -> onnx.NodeProto:
    """``node("Conv", "x w -> y", pads=[1, 1, 1, 1])``; ``_`` is an input that is left out."""
    before, _, after = wires.partition("->")
    inputs = ["" if name == "_" else name for name in before.split()]
    return helper.make_node(operation, inputs, after.split(), name=after.strip(), **attributes)


def batch_norm(wires: str, name: str, **attributes: Any) -> onnx.NodeProto:
    """A BatchNormalization whose statistics are called ``name.weight``, ``name.bias``, ..."""
    value, _, output = wires.partition("->")
    own = " ".join(f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
    return node("BatchNormalization", f"{value} {own} -> {output}", **attributes)


def statistics(name: str, channels: int, seed: int = 0) -> Arrays:
    """Random weights and statistics for `batch_norm`, gamma of both signs."""
    generator = np.random.default_rng(seed)
    arrays = {
        "weight": generator.uniform(0.5, 1.5, channels) * np.where(np.arange(channels) % 2, -1, 1),
        "bias": generator.normal(0, 0.5, channels),
        "running_mean": generator.normal(0, 0.5, channels),
        "running_var": generator.uniform(0.3, 3.0, channels),
    }
    return {f"{name}.{part}": array.astype(np.float32) for part, array in arrays.items()}


def weights(seed: int = 1, **shapes: tuple[int, ...]) -> Arrays:
    """Random constants; ``_`` in a keyword stands for the dot that Python does not allow there."""
    generator = np.random.default_rng(seed)
    return {
        name.replace("_", "."): generator.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def model_of(
    nodes: list[onnx.NodeProto],
    constants: Arrays,
    *,
    shape: tuple[int, ...] = (3, 8, 8),
    outputs: tuple[str, ...] = ("y",),
    more_inputs: tuple[onnx.ValueInfoProto, ...] = (),
) -> onnx.ModelProto:
    """A model from ``x`` [N, *shape] to ``outputs``, every shape inferred."""
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape]), *more_inputs],
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, constants[name].shape if name in constants else None
            )
            for name in outputs
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model_proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model_proto = onnx.shape_inference.infer_shapes(model_proto, strict_mode=True)
    onnx.checker.check_model(model_proto)
    return model_proto


@dataclass(frozen=True)
class Folded:
    """What the pass did, and how far the answers moved relative to the largest of them."""

    folds: list[Fold]
    operations: list[str]
    difference: float
    model_proto: onnx.ModelProto

    @property
    def actions(self) -> list[str]:
        return [fold.action for fold in self.folds]

    @property
    def reasons(self) -> str:
        return "; ".join(fold.reason for fold in self.folds)


def fold(model_proto: onnx.ModelProto, *, feeds: Arrays | None = None) -> Folded:
    """Fold ``model_proto`` and compare its answers on random input before and after."""
    model = ir.from_proto(model_proto)
    constants = Float64Initializers(model.graph)
    folds = FoldPass(model.graph, constants).fold_batch_norms()
    constants.store()
    folded = ir.to_proto(model)
    onnx.checker.check_model(folded, full_check=True)
    sides = [side.dim_value or 2 for side in model_proto.graph.input[0].type.tensor_type.shape.dim]
    given = {"x": np.random.default_rng(2).normal(0, 1, sides).astype(np.float32)} | (feeds or {})
    difference = 0.0
    for expected, actual in zip(answers(model_proto, given), answers(folded, given), strict=True):
        assert expected.shape == actual.shape
        assert np.abs(expected).max() > 0.05, "answers near 0 would agree with anything"
        difference = max(difference, float(np.abs(actual - expected).max() / np.abs(expected).max()))
    return Folded(folds, [entry.op_type for entry in folded.graph.node], difference, folded)


def check(model_proto: onnx.ModelProto, expected: list[str], *, feeds: Arrays | None = None) -> Folded:
    """Fold; the actions must be ``expected``, the answers the same, and no BatchNormalization left."""
    folded = fold(model_proto, feeds=feeds)
    assert folded.actions == expected, folded.reasons
    assert folded.difference < TOLERANCE, folded.reasons
    assert "BatchNormalization" not in folded.operations
    return folded


def answers(model_proto: onnx.ModelProto, feeds: Arrays) -> list[NDArray[Any]]:
    session = Session(model_proto.SerializeToString(), device="cpu", intra_op_threads=1)
    return session.run([output.name for output in model_proto.graph.output], feeds)
