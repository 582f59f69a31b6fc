"""Analyses an ONNX graph: the shape, parameters, MACs and receptive field of each layer.

PyTorch networks and files are treated alike, since both are graphs here. The batch is one image.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

from foldserve.export.errors import SourceError
from foldserve.export.inspection.fields import field_after
from foldserve.export.inspection.receptive_field import ReceptiveField
from foldserve.export.inspection.shapes import known_shape
from foldserve.export.inspection.windows import Window, read_window

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

# Usual names, if they differ from ONNX's.
_KINDS = {
    "BatchNormalization": "BatchNorm",
    "Relu": "ReLU",
    "Gemm": "Linear",
    "AveragePool": "AvgPool",
    "GlobalAveragePool": "GlobalAvgPool",
}
# Whole numbers in a graph are shapes, axes and indices, not weights.
_NOT_WEIGHTS = {ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING}
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Layer:
    """One operation on one image.

    ``output`` is its shape without the batch. ``macs`` counts multiply-accumulates, so normalisation,
    activation and pooling have none. ``field`` is the receptive field, None if it is not defined.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    window: Window | None
    parameters: int
    macs: int
    field: ReceptiveField | None


def analyse(
    model: ir.Model, image_shape: tuple[int, ...], parameter_names: Container[str] | None = None
) -> list[Layer]:
    """Return the layers of ``model``, which is changed, in the order in which they run.

    Args:
        model: a graph with one image input [N, ...].
        image_shape: that input's shape without N.
        parameter_names: names of the learned constants; None for all that are not integers, since a file
            does not mark them.

    Raises:
        SourceError: the graph does not take such images, or a shape in it cannot be inferred.
    """
    _reduce_to_one_image(model, image_shape)
    image = image_input(model)
    ones = (1,) * (len(image_shape) - 1)
    fields: dict[ir.Value, ReceptiveField] = {image: ReceptiveField(ones, ones, image_shape[1:])}
    counted: set[ir.Value] = set()
    layers = []
    for node in model.graph:
        field = field_after(node, fields)
        if field is not None:
            fields |= dict.fromkeys(node.outputs, field)
        parameters = _parameters(node, parameter_names) - counted
        counted |= parameters
        layers.append(
            Layer(
                name=_name(node),
                kind=_kind(node),
                output=_shape(node.outputs[0])[1:],
                window=read_window(node),
                parameters=sum(math.prod(_shape(value)) for value in parameters),
                macs=_macs(node),
                field=field,
            )
        )
    return layers


def image_input(model: ir.Model) -> ir.Value:
    """Return the graph's only input. Weights, which old files list as inputs too, do not count.

    Raises:
        SourceError: there is not exactly one.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    if len(inputs) != 1:
        raise SourceError(f"the graph has {len(inputs)} inputs; expected one, an image")
    return inputs[0]


def _reduce_to_one_image(model: ir.Model, image_shape: tuple[int, ...]) -> None:
    """Infer the shape of every value for one image, and remove nodes that only compute shapes."""
    graph = model.graph
    image_input(model).shape = ir.Shape([1, *image_shape])
    passes.InlinePass()(model)
    for node in graph:
        for value in node.outputs:
            value.shape = None
    try:
        with _quiet():
            optimizer.fold_constants(model, onnx_shape_inference=True)
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            passes.IdentityEliminationPass()(model)
            passes.RemoveUnusedNodesPass()(model)
            passes.ShapeInferencePass(check_type=True, strict_mode=True, data_prop=True)(model)
    except Exception as error:  # onnx raises errors of its own types
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise SourceError(f"the graph cannot be inspected: {reason}") from error
    for node in graph:
        if known_shape(node.outputs[0]) is None:
            raise SourceError(
                f"the graph does not take images of {list(image_shape)}, or its shapes depend on pixel "
                f"values: the shape of {node.outputs[0].name} ({node.op_type}) is not known"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the shape inference, which logs a traceback if shapes do not fit; the caller reports that."""
    logger = logging.getLogger("onnx_ir.passes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _macs(node: ir.Node) -> int:
    """Count multiply-accumulates of a convolution or matrix product; 0 for any other node."""
    if node.op_type == "Conv":  # weight [out, in / groups, *kernel]
        return math.prod(_shape(node.outputs[0])) * math.prod(_shape(node.inputs[1])[1:])
    if node.op_type == "ConvTranspose":  # each input value is spread over [out / groups, *kernel]
        return math.prod(_shape(node.inputs[0])) * math.prod(_shape(node.inputs[1])[1:])
    if node.op_type in {"Gemm", "MatMul"}:
        left = _shape(node.inputs[0])
        is_transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", False)
        return math.prod(_shape(node.outputs[0])) * left[-2 if is_transposed else -1]
    return 0


def _parameters(node: ir.Node, names: Container[str] | None) -> set[ir.Value]:
    inputs = node.inputs
    if node.op_type == "BatchNormalization":
        inputs = inputs[:3]  # the running mean and variance are statistics, not learned
    return {
        value
        for value in inputs
        if value is not None
        and value.is_initializer()
        and len(_shape(value)) > 0
        and value.dtype not in _NOT_WEIGHTS
        and (names is None or value.name in names)
    }


def _kind(node: ir.Node) -> str:
    if node.op_type == "Reshape" and len(_shape(node.outputs[0])) == 2:
        return "Flatten"
    return _KINDS.get(node.op_type, node.op_type)


def _name(node: ir.Node) -> str:
    """Name a layer after its module: from its weight's name, the tracer's metadata, or the node's name."""
    for value in node.inputs[1:]:
        if value is not None and value.is_initializer() and (value.name or "").endswith(".weight"):
            return (value.name or "").removesuffix(".weight")
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    if len(scopes) > 1 and scopes[-2]:
        return str(scopes[-2])
    return (node.name or node.outputs[0].name or node.op_type).removeprefix("node_")


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    shape = known_shape(value)
    assert shape is not None  # outputs were checked, and constants have one
    return shape
