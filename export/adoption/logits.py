"""Which tensor of an ONNX file holds the logits, and the file without the softmax behind them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx import TensorProto, inliner

from export.endings import Softmax, end_name, find_no_logits, find_softmax
from export.errors import SourceError
from export.probabilities import AS_LOGITS, TAKEN_AS_LOGITS
from serving.artifact import LOGITS

_SHOWN = 5


@dataclass(frozen=True)
class LogitsChoice:
    """The name of the tensor, and what there is to say of it.

    Attributes:
        name: the tensor's.
        note: why that one, where it is not the file's only output as it stands.
        without_softmax: the file with nothing in place of a softmax on the way to ``name``; None where there
            is none.
    """

    name: str
    note: str = ""
    without_softmax: onnx.ModelProto | None = None


def choose_logits(
    model_proto: onnx.ModelProto, asked: str | None, *, is_ours: bool, as_logits: bool = False
) -> LogitsChoice:
    """Take what was ``asked`` for, else the only output, without a softmax at its end.

    Args:
        model_proto: the file.
        asked: a tensor's name, if one was given.
        is_ours: whether ``foldserve export`` wrote it.
        as_logits: whether to take the tensor as it is, whatever computes it.

    Raises:
        SourceError: no such tensor, several outputs to choose from, or an output that is no logits.
    """
    name = LOGITS if is_ours and asked is None else _named(model_proto, asked)
    note = f"logits are taken from {asked}" if asked is not None else ""
    if as_logits:
        return LogitsChoice(name, f"{note}; {TAKEN_AS_LOGITS}" if note else TAKEN_AS_LOGITS)
    if is_ours and asked is None:
        return LogitsChoice(name)
    # What functions compute is looked into.
    flat = inliner.inline_local_functions(model_proto) if model_proto.functions else model_proto
    values = {value.name: value for node in ir.from_proto(flat).graph for value in node.outputs}
    if name not in values:
        raise SourceError(f"the file's output {name} is no computation; expected logits [batch, classes]")
    softmax = find_softmax(values[name])
    if softmax is None:
        _refuse_no_logits(values[name])
        return LogitsChoice(name, note)
    _check_axis(softmax, name)
    note = (
        f"{name if asked else 'it'} ends in a softmax: logits are what goes into that, {softmax.logits.name}"
    )
    return LogitsChoice(name, note, _without(flat, softmax))


def with_output(model_proto: onnx.ModelProto, name: str) -> bytes:
    """Return the file's content with the float tensor ``name`` among its outputs."""
    if name in {value.name for value in model_proto.graph.output}:
        return bytes(model_proto.SerializeToString())
    extended = onnx.ModelProto()
    extended.CopyFrom(model_proto)
    extended.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return bytes(extended.SerializeToString())


def _named(model_proto: onnx.ModelProto, asked: str | None) -> str:
    outputs = [value.name for value in model_proto.graph.output]
    if asked is not None:
        if asked not in {name for node in model_proto.graph.node for name in node.output}:
            raise SourceError(
                f"--output {asked}: the file computes no such tensor; its outputs are {_listed(outputs)}"
            )
        return asked
    if len(outputs) != 1:
        raise SourceError(
            f"the file has {len(outputs)} outputs: {_listed(outputs)}; name the one with the logits, as "
            f"--output {outputs[0]}"
        )
    return outputs[0]


def _refuse_no_logits(value: ir.Value) -> None:
    node = find_no_logits(value)
    if node is None:
        return
    before = node.inputs[0]
    example = "" if before is None or before.producer() is None else f", as --output {before.name}"
    raise SourceError(
        f"the file's {value.name} is of a {end_name(node)}, not logits of one class among several; name the "
        f"tensor that holds logits{example}; {AS_LOGITS}"
    )


def _check_axis(softmax: Softmax, name: str) -> None:
    node = softmax.probabilities.producer()
    axis = None if node is None else node.attributes.get("axis")
    if axis is not None and axis.as_int() == 0:
        raise SourceError(
            f"the file's output {name} is a softmax over axis 0, the images of a batch; expected one over "
            "classes: name the tensor that holds logits with --output"
        )


def _without(model_proto: onnx.ModelProto, softmax: Softmax) -> onnx.ModelProto:
    """Return a copy in which what goes into ``softmax`` comes out of it as well."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model_proto)
    (node,) = (node for node in copied.graph.node if softmax.probabilities.name in node.output)
    node.CopyFrom(
        onnx.helper.make_node("Identity", [str(softmax.logits.name)], list(node.output), name=node.name)
    )
    return copied


def _listed(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
