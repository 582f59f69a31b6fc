"""Ways in which a model's probabilities can be wrong while its logits are right, as damage to a version."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.artifact import LOGITS, PROBABILITIES

if TYPE_CHECKING:
    from pathlib import Path

    from onnx import NodeProto

SOFTMAX = helper.make_node("Softmax", [LOGITS], ["sound"], axis=1)


def node(operation: str, *names: str, **attributes: object) -> NodeProto:
    """A node of one output, the last of ``names``."""
    *inputs, output = names
    return helper.make_node(operation, inputs, [output], **attributes)


def at_size(size: int) -> list[NodeProto]:
    """``strength`` is 1 where ``size`` images are run together, else 0; ``sound`` are the probabilities."""
    return [
        SOFTMAX,
        node("Shape", LOGITS, "count", start=0, end=1),
        node("Constant", "asked", value_ints=[size]),
        node("Equal", "count", "asked", "is that"),
        node("Cast", "is that", "strength", to=TensorProto.FLOAT),
    ]


# From LOGITS to PROBABILITIES, over three classes: `zero` is 0, `third` a third, `shifted` [1, 2, 0].
ENDINGS = {
    "negated": [SOFTMAX, node("Neg", "sound", PROBABILITIES)],
    "of negated logits": [node("Neg", LOGITS, "minus"), node("Softmax", "minus", PROBABILITIES, axis=1)],
    "over the images": [node("Softmax", LOGITS, PROBABILITIES, axis=0)],
    "of a sigmoid": [node("Sigmoid", LOGITS, PROBABILITIES)],
    "twice": [SOFTMAX, node("Softmax", "sound", PROBABILITIES, axis=1)],
    "the logits": [node("Mul", LOGITS, "one", PROBABILITIES)],
    "constant": [
        SOFTMAX,
        node("Mul", "sound", "zero", "nothing"),
        node("Add", "nothing", "third", PROBABILITIES),
    ],
    "NaN": [SOFTMAX, node("Mul", "sound", "zero", "nothing"), node("Div", "nothing", "zero", PROBABILITIES)],
    "of shifted classes": [SOFTMAX, node("Gather", "sound", "shifted", PROBABILITIES, axis=1)],
    # Only a run tells: the declared shape has a symbol for what is cut off.
    "a class less": [
        SOFTMAX,
        node("Greater", "third", "zero", "yes"),
        node("Concat", "yes", "yes", "two", axis=0),
        node("Compress", "sound", "two", PROBABILITIES, axis=1),
    ],
    "wrong for one image alone": [
        *at_size(1),
        node("Mul", "sound", "strength", "extra"),
        node("Add", "sound", "extra", PROBABILITIES),
    ],
    "wrong for three images": [
        *at_size(3),
        node("Mul", "sound", "strength", "extra"),
        node("Add", "sound", "extra", PROBABILITIES),
    ],
}


def end_with(version: Path, ending: str) -> None:
    """Let ``version`` compute its probabilities as ``ending`` says, and mend its hash."""
    path = version / "model.onnx"
    model = onnx.load(path)
    nodes = [entry for entry in model.graph.node if PROBABILITIES not in entry.output]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *ENDINGS[ending]])
    constants = {"zero": [0.0], "one": [1.0], "third": [1 / 3]}
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 0]), "shifted"))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((version / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        content = (version / name).read_bytes()
        facts |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (version / "manifest.json").write_text(json.dumps(manifest))
