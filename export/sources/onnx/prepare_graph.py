"""The graph of an ONNX file made elsewhere, as our exporter would have traced it, unfolded.

One input [batch, C, H, W] that takes any number of images, one output of logits [batch, K], our opset where
the file's is older, and none of the names that `model.onnx` needs itself. Folding comes later and is the same
for all networks (`fold_pass`); that no answer has changed is seen in `import_onnx`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx import inliner, version_converter
from onnxscript import optimizer

from foldserve.artifact.format import IMAGE, LOGITS, PROBABILITIES
from foldserve.export.errors import FoldError, SourceError, first_line
from foldserve.export.graph.fold_pass import BATCH_NORM
from foldserve.export.graph.serialize import BATCH
from foldserve.export.graph.simplify import add_initializer
from foldserve.export.graph.trace import OPSET

if TYPE_CHECKING:
    from foldserve.export.sources.onnx.read import OnnxFile

# Values that `serialize` makes, and those that `normalise` makes where the input is FP32.
_OURS = {IMAGE, LOGITS, PROBABILITIES}
_OURS_OF_FLOATS = {"image.floats", "image.cast", "image.subtract_mean", "image.divide_by_std"}


def prepare(
    file: OnnxFile, *, image: str, logits: str, image_shape: tuple[int, ...], class_count: int
) -> bytes:
    """Return the computation from ``image`` to ``logits``.

    Raises:
        SourceError: it cannot be brought to our opset.
        FoldError: a batch norm in it is in training mode, or out of reach.
    """
    model_proto = onnx.ModelProto()
    model_proto.CopyFrom(file.model_proto)
    _check_batch_norms(model_proto)
    _spell_domain(model_proto)
    if model_proto.functions:
        model_proto = inliner.inline_local_functions(model_proto)
    model = ir.from_proto(_upgrade(model_proto, file.opset))
    fixed_batch = _keep_only(model, image, logits, image_shape)
    optimizer.fold_constants(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _infer_shapes(model)
    if fixed_batch is not None:
        _free_reshapes(model.graph, fixed_batch)
        _infer_shapes(model)
    (answer,) = model.graph.outputs
    answer.shape = ir.Shape([BATCH, class_count])
    answer.type = ir.TensorType(ir.DataType.FLOAT)
    _free_names(model.graph)
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _check_batch_norms(model_proto: onnx.ModelProto) -> None:
    """Refuse what has no meaning for a single image, and what the folding does not see."""
    for node in model_proto.graph.node:
        name = node.name or node.output[0]
        if node.op_type == BATCH_NORM:
            attributes = {entry.name: entry.i for entry in node.attribute}
            if attributes.get("training_mode") or len([output for output in node.output if output]) > 1:
                raise FoldError(
                    f"batch norm {name} is in training mode: it normalises by the statistics of the batch it "
                    "sees; export the file from a network in eval mode"
                )
            if not attributes.get("spatial", 1):
                raise FoldError(
                    f"batch norm {name} has statistics for each pixel (spatial=0); expected each channel"
                )
        branches = [entry.g for entry in node.attribute if entry.type == onnx.AttributeProto.GRAPH]
        if any(inner.op_type == BATCH_NORM for graph in branches for inner in graph.node):
            raise FoldError(
                f"{node.op_type} {name} holds a batch norm in one of its branches, where it cannot be "
                "folded; export the file without control flow"
            )


def _spell_domain(model_proto: onnx.ModelProto) -> None:
    """Write ONNX's own domain in one way: "ai.onnx" is another spelling of ""."""
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
            f"the file's opset {opset} cannot be brought to {OPSET}: {first_line(error)}; export it again "
            f"for opset {OPSET} or later"
        ) from error


def _keep_only(model: ir.Model, image: str, logits: str, image_shape: tuple[int, ...]) -> int | None:
    """Leave one input and one output, and take all shapes back; return the batch size that was fixed."""
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    (pixels,) = (value for value in graph.inputs if value.name == image)
    assert pixels.shape is not None
    batch = pixels.shape[0]
    # What the file says of shapes holds for its own batch size alone.
    for value in values.values():
        value.shape = None
    graph.inputs[:] = [pixels]
    graph.outputs[:] = [values[logits]]
    pixels.shape = ir.Shape([BATCH, *image_shape])
    passes.RemoveUnusedNodesPass()(model)
    return batch if isinstance(batch, int) else None


def _infer_shapes(model: ir.Model) -> None:
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _free_reshapes(graph: ir.Graph, fixed_batch: int) -> None:
    """Let every Reshape of a batch to [``fixed_batch``, ...] take any: 0 stands for its input's own size.

    Where that was not what the file meant, its answers change, which is looked for afterwards.
    """
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain:
            continue
        data, target = node.inputs[0], node.inputs[1]
        if data is None or data.is_initializer() or target is None or target.const_value is None:
            continue
        is_of_batch = not data.shape or not isinstance(data.shape[0], int) or data.shape[0] == fixed_batch
        sides = target.const_value.numpy().copy()
        if is_of_batch and len(sides) and sides[0] == fixed_batch and not (sides == 0).any():
            sides[0] = 0
            node.attributes.pop("allowzero", None)  # it would take the 0 for a size
            node.replace_input_with(1, add_initializer(graph, f"{target.name}.any_batch", sides))
    for node in graph:
        for value in node.outputs:
            value.shape = None  # inferred with the fixed size


def _free_names(graph: ir.Graph) -> None:
    """Rename what has one of our names without being it."""
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
