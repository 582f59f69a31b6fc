"""Which tensor of an ONNX file holds the logits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from export.errors import SourceError
from serving.artifact import LOGITS

_SHOWN = 5
# Ends of networks whose answer is not one class among several, or is a choice already.
_NOT_LOGITS = ("Sigmoid", "HardSigmoid", "ArgMax", "TopK")


@dataclass(frozen=True)
class LogitsChoice:
    """The name of the tensor, and where it is not the file's only output a note on why that one."""

    name: str
    note: str = ""


def choose_logits(model_proto: onnx.ModelProto, asked: str | None, *, is_ours: bool) -> LogitsChoice:
    """Take what was ``asked`` for, else the only output, without a softmax at its end.

    Raises:
        SourceError: no such tensor, several outputs to choose from, or an output that is no logits.
    """
    producers = {name: node for node in model_proto.graph.node for name in node.output}
    outputs = [value.name for value in model_proto.graph.output]
    if asked is not None:
        if asked not in producers:
            raise SourceError(
                f"--output {asked}: the file computes no such tensor; its outputs are {_listed(outputs)}"
            )
        return LogitsChoice(asked, f"logits are taken from {asked}")
    if is_ours:
        return LogitsChoice(LOGITS)
    if len(outputs) != 1:
        raise SourceError(
            f"the file has {len(outputs)} outputs: {_listed(outputs)}; name the one with the logits, as "
            f"--output {outputs[0]}"
        )
    return _without_softmax(outputs[0], producers)


def with_output(model_proto: onnx.ModelProto, name: str) -> bytes:
    """Return the file's content with the float tensor ``name`` among its outputs."""
    if name in {value.name for value in model_proto.graph.output}:
        return bytes(model_proto.SerializeToString())
    extended = onnx.ModelProto()
    extended.CopyFrom(model_proto)
    extended.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return bytes(extended.SerializeToString())


def _without_softmax(output: str, producers: dict[str, onnx.NodeProto]) -> LogitsChoice:
    node = producers.get(output)
    while node is not None and node.op_type == "Identity":
        node = producers.get(node.input[0])
    if node is None:
        raise SourceError(f"the file's output {output} is no computation; expected logits [batch, classes]")
    if node.op_type == "Softmax":
        # Of [batch, classes] every other axis is that of the classes.
        if any(entry.name == "axis" and entry.i == 0 for entry in node.attribute):
            raise SourceError(
                f"the file's output {output} is a softmax over axis 0, the images of a batch; expected one "
                "over classes"
            )
        return LogitsChoice(
            node.input[0], f"it ends in a softmax: logits are what goes into that, {node.input[0]}"
        )
    if node.op_type in _NOT_LOGITS:
        raise SourceError(
            f"the file's output {output} is of a {node.op_type}, not logits of one class among several; name "
            f"the tensor that holds logits, as --output {node.input[0]}"
        )
    return LogitsChoice(output)


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
