"""ONNX files that answer probabilities: the last step is taken off where that is exact, else refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.artifact.format import read_artifact
from foldserve.export.errors import SourceError
from foldserve.export.pipeline import export_model
from foldserve.runtime.session import Session
from tests.export.sources import test_onnx_file as files

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from _pytest.mark import ParameterSet


def node(operation: str, *path: str, **attributes: Any) -> onnx.NodeProto:
    """A node of one output, the last of ``path``."""
    *inputs, output = path
    return helper.make_node(operation, inputs, [output], **attributes)


def ended(*nodes: onnx.NodeProto, opset: int = 18, batch: int | str = "N") -> onnx.ModelProto:
    """A file whose logits ``scores`` go through ``nodes``, the last of which gives its only output."""
    model_proto = files.small_graph(more_nodes=nodes, opset=opset, batch=batch)
    del model_proto.graph.output[:]
    is_integer = nodes[-1].op_type == "ArgMax"
    kind = TensorProto.INT64 if is_integer else TensorProto.FLOAT
    model_proto.graph.output.append(helper.make_tensor_value_info(nodes[-1].output[0], kind, [None, None]))
    constants: dict[str, Any] = {
        "one": np.float32(1),
        "tiny": np.float32(1e-6),
        "byte": np.float32(1 / 255),
        "hundred": np.float32(100),
        "thousand": np.float32(1000),
        "as row": np.array([0, 4]),
        "as map": np.array([0, 4, 1, 1]),
        "sides": np.array([2, 3]),
        "classes": np.array([1]),
        "images": np.array([0]),
        "depth": np.array([4]),
        "off and on": np.array([0, 1], np.float32),
    }
    used = {name for entry in nodes for name in entry.input}
    model_proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used
    )
    onnx.checker.check_model(model_proto)
    return model_proto


SOFTMAX = node("Softmax", "scores", "out", axis=1)
SIGMOID = node("Sigmoid", "scores", "out")
EXP = node("Exp", "scores", "powers")
SUM = node("ReduceSum", "powers", "classes", "sum", keepdims=1)
MAP = node("Reshape", "scores", "as map", "map")

FILES_TAKEN_OFF = {
    "softmax": [SOFTMAX],
    "the last axis": [node("Softmax", "scores", "out", axis=-1)],
    "no axis": [node("Softmax", "scores", "out")],
    "logarithms": [node("LogSoftmax", "scores", "out", axis=1)],
    "handed on": [SOFTMAX, node("Identity", "out", "tail")],
    "flattened": [MAP, node("Softmax", "map", "out", axis=1), node("Flatten", "out", "tail")],
    "reshaped": [MAP, node("Softmax", "map", "out", axis=1), node("Reshape", "out", "as row", "tail")],
    "squeezed": [MAP, node("Softmax", "map", "out", axis=1), node("Squeeze", "out", "sides", "tail")],
    "in doubles": [
        node("Cast", "scores", "doubles", to=TensorProto.DOUBLE),
        node("Softmax", "doubles", "out", axis=1),
        node("Cast", "out", "tail", to=TensorProto.FLOAT),
    ],
    "in halves": [
        node("Cast", "scores", "halves", to=TensorProto.FLOAT16),
        node("Softmax", "halves", "out", axis=1),
        node("Cast", "out", "tail", to=TensorProto.FLOAT),
    ],
    "written out": [EXP, SUM, node("Div", "powers", "sum", "out")],
    "written out twice": [
        EXP,
        node("Exp", "scores", "powers again"),
        node("ReduceSum", "powers again", "classes", "sum", keepdims=1),
        node("Div", "powers", "sum", "out"),
    ],
    "written out stably": [
        node("ReduceMax", "scores", "classes", "max", keepdims=1),
        node("Sub", "scores", "max", "shifted"),
        node("Exp", "shifted", "powers"),
        SUM,
        node("Div", "powers", "sum", "out"),
    ],
    "by a reciprocal": [
        EXP,
        SUM,
        node("Reciprocal", "sum", "inverse"),
        node("Mul", "powers", "inverse", "out"),
    ],
    "exponential of logarithms": [node("LogSoftmax", "scores", "logs", axis=1), node("Exp", "logs", "out")],
    "logarithms of a softmax": [node("Softmax", "scores", "parts", axis=1), node("Log", "parts", "out")],
    "by the logarithm of a sum": [
        node("ReduceLogSumExp", "scores", "classes", "sum", keepdims=1),
        node("Sub", "scores", "sum", "logs"),
        node("Exp", "logs", "out"),
    ],
    "with a temperature": [node("Div", "scores", "hundred", "cool"), node("Softmax", "cool", "out", axis=1)],
}
FILES_REFUSED = {
    "clipped": [SOFTMAX, node("Clip", "out", "tiny", "tail")],
    "in bytes": [
        SOFTMAX,
        node("QuantizeLinear", "out", "byte", "bytes"),
        node("DequantizeLinear", "bytes", "byte", "tail"),
    ],
    "in per cent": [SOFTMAX, node("Mul", "out", "hundred", "tail")],
    "over the images": [node("Softmax", "scores", "out", axis=0)],
    "over nothing": [MAP, node("Softmax", "map", "out", axis=3), node("Flatten", "out", "tail")],
    "over the images, written out": [
        EXP,
        node("ReduceSum", "powers", "images", "sum", keepdims=1),
        node("Div", "powers", "sum", "out"),
    ],
    "sigmoid": [SIGMOID],
    "sigmoid of little": [node("Div", "scores", "thousand", "low"), node("Sigmoid", "low", "out")],
    "hard sigmoid": [node("HardSigmoid", "scores", "out")],
    "sigmoid, reshaped": [SIGMOID, node("Reshape", "out", "as row", "tail")],
    "sigmoid, clipped": [SIGMOID, node("Clip", "out", "tiny", "tail")],
    "its opposite": [SIGMOID, node("Sub", "one", "out", "tail")],
    "sigmoid written out": [
        node("Neg", "scores", "minus"),
        node("Exp", "minus", "powers"),
        node("Add", "powers", "one", "low"),
        node("Div", "one", "low", "out"),
    ],
    "sigmoid by a reciprocal": [
        node("Neg", "scores", "minus"),
        node("Exp", "minus", "powers"),
        node("Add", "one", "powers", "low"),
        node("Reciprocal", "low", "out"),
    ],
    "log-sigmoid": [node("Sigmoid", "scores", "parts"), node("Log", "parts", "out")],
    "log-sigmoid by a softplus": [
        node("Neg", "scores", "minus"),
        node("Softplus", "minus", "plus"),
        node("Neg", "plus", "out"),
    ],
    "log-sigmoid as PyTorch writes softplus": [
        node("Greater", "scores", "hundred", "are large"),
        node("Softplus", "scores", "plus"),
        node("Div", "plus", "one", "scaled"),
        node("Where", "are large", "scores", "scaled", "chosen"),
        node("Neg", "chosen", "out"),
    ],
    "largest": [node("ReduceMax", "scores", "classes", "out", keepdims=1)],
    "choice": [node("ArgMax", "scores", "out", axis=1)],
    "choice as a float": [
        node("ArgMax", "scores", "choice", axis=1),
        node("Cast", "choice", "out", to=TensorProto.FLOAT),
    ],
    "one of all": [
        node("ArgMax", "scores", "choice", axis=1, keepdims=0),
        node("OneHot", "choice", "depth", "off and on", "out"),
    ],
    "the best": [helper.make_node("TopK", ["scores", "depth"], ["out", "places"])],
}


# Tried with --output as well.
ASKED = (
    "softmax",
    "logarithms",
    "squeezed",
    "written out",
    "clipped",
    "over the images",
    "sigmoid",
    "choice",
)


def asked_and_not(cases: Iterable[str]) -> list[ParameterSet]:
    """Each case with its only output, and some with that output named."""
    plain = [pytest.param(case, False, id=case) for case in cases]
    return plain + [pytest.param(case, True, id=f"{case}, asked for") for case in cases if case in ASKED]


@pytest.fixture
def labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(files.LABELS) + "\n")


def file_answers(path: Path, output: str) -> np.ndarray:
    return files.given_logits(path, files.IMAGES, output).reshape(len(files.IMAGES), -1)


@pytest.mark.parametrize(("case", "asked"), asked_and_not(FILES_TAKEN_OFF))
def test_softmax_of_a_file_is_removed_and_callers_get_its_probabilities(
    case, asked, labels, tmp_path, capsys
):
    """Also where the user names it: --output is no way to a second softmax."""
    nodes = FILES_TAKEN_OFF[case]
    output = nodes[-1].output[0]
    path = files.save(ended(*nodes), tmp_path)
    assert export_model(files.config(path, output=output if asked else None)) == 0
    assert "removed the softmax at the end" in capsys.readouterr().out
    answers = file_answers(path, output)
    session = Session(read_artifact(tmp_path / "models/adopted/1").model, device="cpu", intra_op_threads=1)
    logits, probabilities = session.run(["logits", "probabilities"], {"image": files.IMAGES})
    expected = np.exp(answers) if answers.min() < 0 else answers
    assert np.abs(probabilities - expected).max() < (1e-3 if case == "in halves" else 1e-5)
    assert "Softmax" not in [
        entry.op_type for entry in onnx.load(tmp_path / "models/adopted/1/model.onnx").graph.node[:-1]
    ]
    assert case == "with a temperature" or np.ptp(logits) > 1


@pytest.mark.parametrize(("case", "asked"), asked_and_not(FILES_REFUSED))
def test_files_of_other_probabilities_are_refused_with_advice(case, asked, labels, tmp_path):
    nodes = FILES_REFUSED[case]
    path = files.save(ended(*nodes), tmp_path)
    if "largest" in case:
        (tmp_path / "labels.txt").write_text("a\n")
    with pytest.raises(SourceError) as raised:
        export_model(files.config(path, output=nodes[-1].output[0] if asked else None))
    assert "logit" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("models/*/*/manifest.json"))


def test_softmax_over_a_fixed_batch_of_one_is_removed(labels, tmp_path):
    """A softmax over the images of a batch of one is 1 whatever goes in."""
    nodes = (node("Softmax", "scores", "out", axis=0),)
    model_proto = ended(*nodes, batch=1)
    del model_proto.graph.node[-1].attribute[:]
    path = files.save(model_proto, tmp_path)
    assert export_model(files.config(path)) == 0
    model_proto.graph.node[-1].attribute.append(helper.make_attribute("axis", -2))
    with pytest.raises(SourceError, match="not over the classes"):
        export_model(files.config(files.save(model_proto, tmp_path)))


@pytest.mark.parametrize("case", ["sigmoid", "log-sigmoid"])
def test_the_logits_before_a_sigmoid_can_be_named(case, labels, tmp_path):
    path = files.save(ended(*FILES_REFUSED[case]), tmp_path)
    with pytest.raises(SourceError, match="--output scores"):
        export_model(files.config(path))
    assert export_model(files.config(path, output="scores")) == 0
    logits = files.adopted_logits(tmp_path / "models/adopted/1", files.IMAGES)
    assert np.abs(logits - file_answers(files.save(files.small_graph(), tmp_path), "scores")).max() < 5e-5


@pytest.mark.parametrize(
    "case", ["sigmoid", *(pytest.param(name, marks=pytest.mark.slow) for name in ("clipped", "over nothing"))]
)
def test_output_of_a_file_is_treated_as_logits_with_as_logits(case, labels, tmp_path):
    nodes = FILES_REFUSED[case]
    path = files.save(ended(*nodes), tmp_path)
    assert export_model(files.config(path, as_logits=True)) == 0
    logits = files.adopted_logits(tmp_path / "models/adopted/1", files.IMAGES)
    assert np.abs(logits - file_answers(path, nodes[-1].output[0])).max() < 5e-5


def test_a_softmax_inside_a_function_of_the_file_is_seen(labels, tmp_path):
    model_proto = ended(SOFTMAX)
    model_proto.graph.node[-1].CopyFrom(helper.make_node("Likely", ["scores"], ["out"], domain="theirs"))
    function = helper.make_function(
        "theirs",
        "Likely",
        ["given"],
        ["made"],
        [node("Softmax", "given", "made", axis=1)],
        [helper.make_opsetid("", 18)],
    )
    model_proto.functions.append(function)
    model_proto.opset_import.append(helper.make_opsetid("theirs", 1))
    path = files.save(model_proto, tmp_path)
    assert export_model(files.config(path)) == 0
    session = Session(read_artifact(tmp_path / "models/adopted/1").model, device="cpu", intra_op_threads=1)
    (probabilities,) = session.run(["probabilities"], {"image": files.IMAGES})
    assert np.abs(probabilities - file_answers(path, "out")).max() < 1e-5
