"""Finds out whether a graph ends in logits, or in something computed from them.

    softmax   Softmax, LogSoftmax, or written out: exp(x) / sum(exp(x)), exp(x) * (1 / sum(exp(x))),
              exp(x - logsumexp(x)), exp(logsoftmax(x)), log(softmax(x))
    sigmoid   Sigmoid, HardSigmoid, or written out: 1 / (1 + exp(-x)), also 1 minus that; its logarithm,
              log(sigmoid(x)) or -softplus(-x)
    choice    ArgMax, TopK: the classes, without their scores

A softmax can be removed if nothing but changes of shape and type follow it. The others are found behind
clipping, arithmetic with constants and a choice of some numbers too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_RESHAPING = {
    "Identity",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Cast",
    "CastLike",
    "Dropout",
}
_WITH_CONSTANTS = {
    "Clip",
    "Max",
    "Min",
    "Mul",
    "Div",
    "Add",
    "Sub",
    "Pad",
    "Slice",
    "Gather",
    "QuantizeLinear",
    "DequantizeLinear",
}
_SOFTMAX = {"Softmax", "LogSoftmax"}
_NO_LOGITS = {"Softmax", "Sigmoid", "HardSigmoid", "ArgMax", "ArgMin", "TopK", "Hardmax", "OneHot"}


@dataclass(frozen=True)
class Softmax:
    """The last softmax of a graph: its input ``logits`` and its output ``probabilities``."""

    logits: ir.Value
    probabilities: ir.Value


def find_softmax(value: ir.Value) -> Softmax | None:
    """Return the softmax that computes ``value``, apart from its shape and type; None if there is none."""
    node = _behind_shapes(value)
    if node is None or node.domain:
        return None
    logits = _softmax_input(node)
    return None if logits is None else Softmax(logits, node.outputs[0])


def find_sigmoid(value: ir.Value) -> Softmax | None:
    """Return the Sigmoid, or its logarithm, that computes ``value``, apart from its shape and type."""
    node = _behind_shapes(value)
    if node is None or node.domain:
        return None
    sigmoid = _logged_sigmoid(node) or node
    if sigmoid.op_type != "Sigmoid" or sigmoid.domain or sigmoid.inputs[0] is None:
        return None
    return Softmax(sigmoid.inputs[0], node.outputs[0])


def find_no_logits(value: ir.Value) -> ir.Node | None:
    """Return the node that computes ``value``, apart from arithmetic with constants, if it is not logits."""
    node = _behind_shapes(value)
    while node is not None and not node.domain:
        if end_name(node):
            return node
        computed = [given for given in node.inputs if given is not None and not _is_constant(given)]
        if node.op_type not in _WITH_CONSTANTS or len(computed) != 1:
            return None
        node = _behind_shapes(computed[0])
    return None


def end_name(node: ir.Node) -> str:
    """Return the name of a node whose output is not logits; "" for any other, LogSoftmax included."""
    if node.op_type in _NO_LOGITS:
        return node.op_type
    if node.op_type not in ("LogSoftmax", "Log") and _softmax_input(node) is not None:
        return "softmax"
    if _logged_sigmoid(node) is not None or _is_negated_softplus(node):
        return "log-sigmoid"
    return "sigmoid" if _is_written_out_sigmoid(node) else ""


def input_of_end(node: ir.Node) -> ir.Value | None:
    """Return the computed value that ``node``, which `end_name` names, is a function of; None if unknown."""
    if _is_negated_softplus(node):
        return None  # the negative of a logit
    given = (_logged_sigmoid(node) or node).inputs[0]
    return None if given is None or given.producer() is None or _is_constant(given) else given


def _behind_shapes(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    while node is not None and node.op_type in _RESHAPING and not node.domain and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _softmax_input(node: ir.Node) -> ir.Value | None:
    """Return what ``node`` computes the softmax or the log-softmax of; None if it computes neither."""
    given = node.inputs[0] if node.inputs else None
    if node.op_type in _SOFTMAX:
        return given
    before = None if given is None else _behind_shapes(given)
    if before is None or before.domain:
        return _written_out_softmax(node)
    if node.op_type == "Log" and (before.op_type == "Softmax" or _written_out_softmax(before) is not None):
        return _softmax_input(before)
    if node.op_type == "Exp":
        return before.inputs[0] if before.op_type == "LogSoftmax" else _shifted_by_logsumexp(before)
    return _written_out_softmax(node)


def _shifted_by_logsumexp(node: ir.Node) -> ir.Value | None:
    """Return x of x - logsumexp(x)."""
    if node.op_type != "Sub" or node.inputs[1] is None:
        return None
    total = node.inputs[1].producer()
    is_of_the_same = total is not None and (total.op_type, total.inputs[0]) == (
        "ReduceLogSumExp",
        node.inputs[0],
    )
    return node.inputs[0] if is_of_the_same else None


def _written_out_softmax(node: ir.Node) -> ir.Value | None:
    """Return x of exp(x) / sum(exp(x)); x may be shifted by each row's largest value, as stable code does."""
    powers, total = _quotient(node)
    if powers is None or total is None or total.op_type != "ReduceSum" or powers.op_type != "Exp":
        return None
    summed = None if total.inputs[0] is None else total.inputs[0].producer()
    is_of_the_same = summed is not None and (summed.op_type, summed.inputs[0]) == ("Exp", powers.inputs[0])
    return powers.inputs[0] if is_of_the_same else None


def _quotient(node: ir.Node) -> tuple[ir.Node | None, ir.Node | None]:
    """Return numerator and denominator of a quotient, or of a product with a reciprocal."""
    if node.op_type not in ("Div", "Mul") or None in node.inputs:
        return None, None
    above, below = (given.producer() for given in node.inputs if given is not None)
    if node.op_type == "Div":
        return above, below
    if above is not None and above.op_type == "Reciprocal":
        above, below = below, above
    if below is None or below.op_type != "Reciprocal" or below.inputs[0] is None:
        return None, None
    return above, below.inputs[0].producer()


def _logged_sigmoid(node: ir.Node) -> ir.Node | None:
    """Return the sigmoid that ``node`` computes the logarithm of; None if it computes something else."""
    given = node.inputs[0] if node.op_type == "Log" else None
    before = None if given is None else _behind_shapes(given)
    if before is None or before.domain:
        return None
    is_sigmoid = before.op_type in ("Sigmoid", "HardSigmoid") or _is_written_out_sigmoid(before)
    return before if is_sigmoid else None


def _is_negated_softplus(node: ir.Node) -> bool:
    """Tell whether ``node`` computes -softplus(x) = log(1 - sigmoid(x)) = log(sigmoid(-x))."""
    value = node.inputs[0] if node.op_type == "Neg" else None
    for _ in range(3):
        before = None if value is None else _behind_shapes(value)
        if before is None or before.domain:
            return False
        if before.op_type == "Softplus":
            return True
        # PyTorch's is x itself where x is large, else softplus(beta x) / beta.
        position = {"Where": 2, "Div": 0}.get(before.op_type)
        value = None if position is None else before.inputs[position]
    return False


def _is_written_out_sigmoid(node: ir.Node) -> bool:
    """Tell whether ``node`` divides a constant by a constant and an exponential."""
    if node.op_type == "Div" and node.inputs[0] is not None and _is_constant(node.inputs[0]):
        below = node.inputs[1]
    elif node.op_type == "Reciprocal":
        below = node.inputs[0]
    else:
        return False
    total = None if below is None else below.producer()
    if total is None or total.op_type != "Add":
        return False
    parts = [given for given in total.inputs if given is not None and not _is_constant(given)]
    power = parts[0].producer() if len(parts) == 1 else None
    return power is not None and power.op_type == "Exp"


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None:
        return value.is_initializer()
    given = producer.inputs[0] if producer.op_type in _RESHAPING else None
    return producer.op_type == "Constant" or (given is not None and _is_constant(given))
