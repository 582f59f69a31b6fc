"""Brings the graph of an ONNX file into the form in which a PyTorch network is traced.

The result has one input [batch, C, H, W] that takes any number of images, one output of logits [batch, K],
our opset if the file's is older, and none of the names that `model.onnx` needs itself. Folding comes later
and is the same for all networks (`fold_pass`); `import_onnx` checks that the output has not changed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx import inliner, version_converter
from onnxscript import optimizer

from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES
from foldserve.export.errors import FoldError, SourceError, first_line
from foldserve.export.graph.channel_order import reverse_input_channels
from foldserve.export.graph.fold_pass import BATCH_NORM
from foldserve.export.graph.serialize import BATCH, IR_VERSION
from foldserve.export.graph.simplify import add_initializer, unused_name
from foldserve.export.graph.trace import OPSET
from foldserve.export.graph.transposes import cancel_transposes
from foldserve.export.graph.weights_apart import attach_weights, write_apart
from foldserve.export.sources.onnx.float64_constants import compute_constants
from foldserve.export.sources.onnx.normalized_file import PreparedFile

if TYPE_CHECKING:
    from foldserve.export.sources.onnx.normalized_file import InputLayout
    from foldserve.export.sources.onnx.read import OnnxFile

# Names of the values that `serialize` adds, and of those that `normalise` adds if the input is FP32.
_OURS = {IMAGE, LOGITS, PROBABILITIES}
_OURS_OF_FLOATS = {"image.floats", "image.cast", "image.subtract_mean", "image.divide_by_std"}


def prepare(
    file: OnnxFile,
    *,
    image: str,
    logits: str,
    image_shape: tuple[int, ...],
    class_count: int,
    layout: InputLayout,
    is_binary: bool = False,
) -> PreparedFile:
    """Return the file's computation from ``image`` to ``logits``. The message in ``file`` is changed.

    The input of the result is [batch, C, H, W] and in the clients' order of channels, whatever ``layout`` the
    file's own has; its output is [batch, ``class_count``], also if the file's has further sides of 1. It is
    [0, z] if the file outputs one logit z (``is_binary``).

    Raises:
        SourceError: it cannot be converted to our opset.
        FoldError: a batch norm in it is in training mode, or in a branch.
    """
    model_proto = file.model_proto
    _check_batch_norms(model_proto)
    _spell_domain(model_proto)
    if model_proto.functions:
        model_proto = inliner.inline_local_functions(model_proto)
    model_proto = _upgrade(model_proto, file.opset)
    exact_weights = compute_constants(model_proto, file.weights)
    model = ir.from_proto(model_proto)
    del model_proto
    attach_weights(model, file.weights)
    # Up to IR 3 every weight has to be an input too; an input could be replaced by a caller.
    model.ir_version = max(model.ir_version or 0, IR_VERSION)
    fixed_batch = _keep_only(model, image, logits, image_shape)
    _take_layout(model.graph, layout)
    optimizer.fold_constants(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if layout.channels_last:
        _cancel_transposes(model.graph)
        passes.RemoveUnusedNodesPass()(model)
    _infer_shapes(model)
    image_bytes = _largest_of_image(model.graph)
    if fixed_batch is not None:
        _free_reshapes(model.graph, fixed_batch)
        _infer_shapes(model)
    if _rank(model.graph.outputs[0]) != 2:
        _flatten_output(model.graph)
    if is_binary:
        _put_zero_before(model.graph)
    (output,) = model.graph.outputs
    output.shape = ir.Shape([BATCH, class_count])
    output.type = ir.TensorType(ir.DataType.FLOAT)
    _free_names(model.graph)
    prepared, weights, content = write_apart(model, file.weights)
    return PreparedFile(prepared, weights, content, image_bytes, exact_weights)


def _check_batch_norms(model_proto: onnx.ModelProto) -> None:
    """Refuse batch norms that depend on the batch, and those that folding does not reach."""
    for node in model_proto.graph.node:
        name = node.name or node.output[0]
        if node.op_type == BATCH_NORM:
            attributes = {entry.name: entry.i for entry in node.attribute}
            if attributes.get("training_mode") or len([output for output in node.output if output]) > 1:
                raise FoldError(
                    f"batch norm {name} is in training mode: it normalises by the statistics of the current "
                    "batch; export the file from a network in eval mode"
                )
            if not attributes.get("spatial", 1):
                raise FoldError(
                    f"batch norm {name} has statistics per pixel (spatial=0); expected one per channel"
                )
        branches = [entry.g for entry in node.attribute if entry.type == onnx.AttributeProto.GRAPH]
        if any(inner.op_type == BATCH_NORM for graph in branches for inner in graph.node):
            raise FoldError(
                f"{node.op_type} {name} has a batch norm in one of its branches, where it cannot be "
                "folded; export the file without control flow"
            )


def _spell_domain(model_proto: onnx.ModelProto) -> None:
    """Spell ONNX's own domain "" throughout; "ai.onnx" means the same."""
    for entry in model_proto.opset_import:
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    for node in model_proto.graph.node:
        node.domain = "" if node.domain == "ai.onnx" else node.domain


def _upgrade(model_proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    if opset >= OPSET:
        return model_proto
    try:
        return version_converter.convert_version(model_proto, OPSET)
    except Exception as error:  # ConvertError, or RuntimeError from the converter's own assertions
        raise SourceError(
            f"the file's opset {opset} cannot be converted to {OPSET}: {first_line(error)}; export it again "
            f"with opset {OPSET} or later"
        ) from error


def _keep_only(model: ir.Model, image: str, logits: str, image_shape: tuple[int, ...]) -> int | None:
    """Keep one input and one output, and discard all shapes; return the fixed batch size, or None."""
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    (pixels,) = (value for value in graph.inputs if value.name == image)
    assert pixels.shape is not None
    batch = pixels.shape[0]
    # The shapes in the file hold for its own batch size only.
    for value in values.values():
        value.shape = None
    graph.inputs[:] = [pixels]
    graph.outputs[:] = [values[logits]]
    pixels.shape = ir.Shape([BATCH, *image_shape])
    passes.RemoveUnusedNodesPass()(model)
    return batch if isinstance(batch, int) and batch > 0 else None


def _take_layout(graph: ir.Graph, layout: InputLayout) -> None:
    """Bring the input [batch, C, H, W], in the clients' order of channels, into the layout that is read."""
    (image,) = graph.inputs
    if layout.channels_last:
        uses = list(image.uses())
        node = ir.node("Transpose", [image], {"perm": [0, 2, 3, 1]}, name=unused_name(graph, "channels_last"))
        node.outputs[0].name, node.outputs[0].type = node.name, image.type
        for use in uses:
            use.node.replace_input_with(use.idx, node.outputs[0])
        first = next(iter(graph), None)
        if first is None:
            graph.append(node)
        else:
            graph.insert_before(first, node)
    if layout.reversed_channels:
        reverse_input_channels(graph)


def _cancel_transposes(graph: ir.Graph) -> None:
    """Cancel the transposition that `_take_layout` inserted against the file's own."""
    (image,) = graph.inputs
    readers = [use.node for use in image.uses()]
    for start in (image, *(node.outputs[0] for node in readers if node.op_type == "Gather")):
        cancel_transposes(graph, start)


def _largest_of_image(graph: ir.Graph) -> int:
    """Return the size of the largest float32 tensor for one image, as far as shapes are known."""
    shapes = [value.shape for node in graph for value in node.outputs if value.shape]
    sides = [[side for side in list(shape)[1:] if isinstance(side, int)] for shape in shapes]
    return max((4 * math.prod(one) for one in sides), default=0)


def _rank(value: ir.Value) -> int:
    """Return the rank of ``value``; 2 if it is not known."""
    return 2 if value.shape is None else len(value.shape)


def _flatten_output(graph: ir.Graph) -> None:
    """Turn an output [batch, K, 1, 1] into [batch, K]."""
    (output,) = graph.outputs
    flatten = ir.node("Flatten", [output], {"axis": 1}, name=unused_name(graph, f"{output.name}.flat"))
    flatten.outputs[0].name = flatten.name
    graph.append(flatten)
    graph.outputs[:] = [flatten.outputs[0]]


def _put_zero_before(graph: ir.Graph) -> None:
    """Turn one logit z into two, [0, z], whose softmax is [1 - sigmoid(z), sigmoid(z)]."""
    (output,) = graph.outputs
    sides = add_initializer(graph, f"{output.name}.before", np.array([0, 1, 0, 0], dtype=np.int64))
    pad = ir.node("Pad", [output, sides], name=unused_name(graph, f"{output.name}.two"))
    pad.outputs[0].name = pad.name
    graph.append(pad)
    graph.outputs[:] = [pad.outputs[0]]


def _infer_shapes(model: ir.Model) -> None:
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _free_reshapes(graph: ir.Graph, fixed_batch: int) -> None:
    """Let every Reshape of a batch to [``fixed_batch``, ...] take any batch size: 0 means the input's own.

    If the file meant something else, its output changes, which `import_onnx` checks afterwards.
    """
    computed = _computed_from(graph.inputs[0])
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain:
            continue
        data, target = node.inputs[0], node.inputs[1]
        if data not in computed or target is None or target.const_value is None:
            continue
        is_of_batch = not data.shape or not isinstance(data.shape[0], int) or data.shape[0] == fixed_batch
        sides = target.const_value.numpy().copy()
        if is_of_batch and len(sides) and sides[0] == fixed_batch and not (sides == 0).any():
            sides[0] = 0
            node.attributes.pop("allowzero", None)  # with it, 0 would mean a size of 0
            node.replace_input_with(1, add_initializer(graph, f"{target.name}.any_batch", sides))
    for node in graph:
        for value in node.outputs:
            value.shape = None  # it was inferred with the fixed size


def _computed_from(image: ir.Value) -> set[ir.Value]:
    """Return every value that depends on ``image``."""
    found, waiting = {image}, [image]
    while waiting:
        for use in waiting.pop().uses():
            new = set(use.node.outputs) - found
            found |= new
            waiting += new
    return found


def _free_names(graph: ir.Graph) -> None:
    """Rename values that have one of our names but another meaning."""
    image, logits = graph.inputs[0], graph.outputs[0]
    ours = _OURS if image.dtype == ir.DataType.UINT8 else _OURS | _OURS_OF_FLOATS
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    taken = {value.name for value in values}
    for value in values:
        if value.name in ours and value not in (image, logits):
            name = f"{value.name}.given"
            while name in taken:
                name += "_"
            taken.add(name)
            value.name = name
