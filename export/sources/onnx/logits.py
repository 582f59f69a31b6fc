"""Finds the tensor of an ONNX file that holds the logits, and removes the softmax after it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx import TensorProto, inliner

from foldserve.artifact.format import LOGITS
from foldserve.export.errors import SourceError
from foldserve.export.graph.endings import (
    Softmax,
    end_name,
    find_no_logits,
    find_sigmoid,
    find_softmax,
    input_of_end,
)
from foldserve.export.verification.probabilities import AS_LOGITS, TAKEN_AS_LOGITS

_SHOWN = 5


@dataclass(frozen=True)
class LogitsChoice:
    """The tensor that holds the logits.

    Attributes:
        name: its name.
        note: why it was chosen; "" if it is the file's only output and nothing was removed.
        without_softmax: the file without the softmax that computed ``name``; None if there is none.
        without_sigmoid: the file without the sigmoid that computed ``name``, the probability of the second of
            two classes or its logarithm; None if there is none.
    """

    name: str
    note: str = ""
    without_softmax: onnx.ModelProto | None = None
    without_sigmoid: onnx.ModelProto | None = None


def choose_logits(
    model_proto: onnx.ModelProto,
    asked: str | None,
    *,
    is_ours: bool,
    as_logits: bool = False,
    is_binary: bool = False,
) -> LogitsChoice:
    """Choose the tensor ``asked`` for, or else the only output, without the softmax that ends it.

    Args:
        model_proto: the file.
        asked: a tensor's name; None if none was given.
        is_ours: whether ``foldserve export`` wrote the file.
        as_logits: whether to take the tensor as it is, whatever computes it.
        is_binary: whether there are two labels, for which a sigmoid may give the probability of the second.

    Raises:
        SourceError: there is no such tensor, there are several outputs, or the output is not logits.
    """
    name = LOGITS if is_ours and asked is None else _named(model_proto, asked)
    note = f"{asked} is used as the logits" if asked is not None else ""
    if as_logits:
        return LogitsChoice(name, f"{note}; {TAKEN_AS_LOGITS}" if note else TAKEN_AS_LOGITS)
    if is_ours and asked is None:
        return LogitsChoice(name)
    flat = _inlined(model_proto)
    values = {value.name: value for node in ir.from_proto(flat).graph for value in node.outputs}
    if name not in values:
        raise SourceError(f"the file's output {name} is not computed; expected logits [batch, classes]")
    softmax = find_softmax(values[name])
    if softmax is None:
        sigmoid = find_sigmoid(values[name]) if is_binary else None
        if sigmoid is not None:
            return LogitsChoice(name, note, without_sigmoid=_without(flat, sigmoid))
        _refuse_no_logits(values[name])
        return LogitsChoice(name, note)
    _check_axis(softmax, name)
    note = (
        f"removed the softmax at the end{f' of {name}' if asked else ''}: its input {softmax.logits.name} is "
        "used as the logits"
    )
    return LogitsChoice(name, note, _without(flat, softmax))


def flat_graph(model_proto: onnx.ModelProto) -> onnx.GraphProto:
    """Return the file's graph, in which no node is a call of one of the file's functions."""
    return _inlined(model_proto).graph


def _inlined(model_proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the file with its functions inlined, so that what is inside one is found."""
    return inliner.inline_local_functions(model_proto) if model_proto.functions else model_proto


def with_output(model_proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the file with the float tensor ``name`` among its outputs."""
    if name in {value.name for value in model_proto.graph.output}:
        return model_proto
    extended = onnx.ModelProto()
    extended.CopyFrom(model_proto)
    extended.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return extended


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
            f"the file has {len(outputs)} outputs: {_listed(outputs)}; name the one that holds the logits: "
            f"--output {outputs[0]}"
        )
    return outputs[0]


def _refuse_no_logits(value: ir.Value) -> None:
    node = find_no_logits(value)
    if node is None:
        return
    before = input_of_end(node)
    example = "" if before is None else f", perhaps --output {before.name}"
    raise SourceError(
        f"the file's {value.name} is the output of a {end_name(node)}, not logits; name the tensor that "
        f"holds the logits{example}; {AS_LOGITS}"
    )


def _check_axis(softmax: Softmax, name: str) -> None:
    node = softmax.probabilities.producer()
    axis = None if node is None else node.attributes.get("axis")
    if axis is not None and axis.as_int() == 0:
        raise SourceError(
            f"the file's output {name} is a softmax over axis 0, the images of a batch; expected one over "
            "the classes: name the tensor that holds the logits with --output"
        )


def _without(model_proto: onnx.ModelProto, softmax: Softmax) -> onnx.ModelProto:
    """Return a copy in which ``softmax`` is replaced by the identity."""
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
