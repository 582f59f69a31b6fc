"""ONNX files with If, Loop and Scan: what decides by the images is refused at once, the rest is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from foldserve.export.errors import SourceError
from foldserve.export.pipeline import export_model
from foldserve.export.sources.load import load_source
from foldserve.export.sources.onnx import onnx_file
from foldserve.export.sources.onnx.control_flow import check_control_flow
from foldserve.export.sources.onnx.sides_from_numbers import DECIDING_INPUTS
from tests.export.sources import test_onnx_file as files

if TYPE_CHECKING:
    from pathlib import Path

node = helper.make_node


def value(name: str, kind: int = TensorProto.FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branches(then: str = "Relu", other: str = "Neg") -> dict[str, onnx.GraphProto]:
    """The branches of an If on ``scores``."""
    return {
        f"{name}_branch": helper.make_graph([node(operation, ["scores"], [name])], name, [], [value(name)])
        for name, operation in (("then", then), ("else", other))
    }


def body(*nodes: onnx.NodeProto, again: str = "again") -> onnx.GraphProto:
    """The body of a Loop: halves what it carries; goes on while ``again``."""
    return helper.make_graph(
        [node("Mul", ["carried", "half"], ["halved"]), *nodes, node("Identity", [again], ["goes on"])],
        "body",
        [value("turn", TensorProto.INT64, []), value("again", TensorProto.BOOL, []), value("carried")],
        [value("goes on", TensorProto.BOOL, []), value("halved")],
    )


MEAN = node("ReduceMean", ["scores"], ["mean"], keepdims=0)
IS_BRIGHT = node("Greater", ["mean", "none"], ["bright"])
SUM_IS_LARGE = [
    node("ReduceSum", ["halved"], ["sum"], keepdims=0),
    node("Greater", ["sum", "none"], ["large"]),
]
ON_THE_FIRST_TURN = [
    node("Less", ["turn", "one"], ["is first"]),
    node("If", ["is first"], ["unused"], name="inner", **branches()),
]
# Ends by what an earlier turn made of the mean, which is read from outside.
ADDING = helper.make_graph(
    [node("Add", ["carried", "mean"], ["added"]), node("Less", ["carried", "half"], ["goes on"])],
    "adding",
    [value("turn", TensorProto.INT64, []), value("again", TensorProto.BOOL, []), value("carried")],
    [value("goes on", TensorProto.BOOL, []), value("added")],
)
REFUSED = {
    "If pick": [MEAN, IS_BRIGHT, node("If", ["bright"], ["out"], name="pick", **branches())],
    "If inner": [
        node(
            "If",
            ["yes"],
            ["out"],
            name="outer",
            else_branch=branches()["else_branch"],
            then_branch=helper.make_graph(
                [MEAN, IS_BRIGHT, node("If", ["bright"], ["inner out"], name="inner", **branches())],
                "then",
                [],
                [value("inner out")],
            ),
        )
    ],
    "Loop counted": [
        MEAN,
        node("Cast", ["mean"], ["count"], to=TensorProto.INT64),
        node("Loop", ["count", "", "scores"], ["out"], name="counted", body=body()),
    ],
    "Loop asked": [
        MEAN,
        IS_BRIGHT,
        node("Loop", ["three", "bright", "scores"], ["out"], name="asked", body=body()),
    ],
    "Loop ended": [
        node(
            "Loop",
            ["three", "yes", "scores"],
            ["out"],
            name="ended",
            body=body(*SUM_IS_LARGE, again="large"),
        )
    ],
    "Loop summed": [
        MEAN,
        node("Loop", ["three", "yes", "none"], ["sum"], name="summed", body=ADDING),
        node("Mul", ["scores", "sum"], ["out"]),
    ],
}
PUBLISHED = {
    "If by a constant": [node("If", ["yes"], ["out"], name="pick", **branches())],
    "If by a shape": [
        node("Shape", ["scores"], ["sides"]),
        node("Gather", ["sides", "one"], ["classes"]),
        node("Greater", ["classes", "one"], ["many"]),
        node("If", ["many"], ["out"], name="pick", **branches("Identity")),
    ],
    "Loop that decides by its turn": [
        node("Loop", ["three", "", "scores"], ["out"], name="halve", body=body(*ON_THE_FIRST_TURN))
    ],
    "Loop of three turns": [node("Loop", ["three", "", "scores"], ["out"], name="halve", body=body())],
    "If that nothing reads": [
        MEAN,
        IS_BRIGHT,
        node("If", ["bright"], ["unused"], name="pick", **branches()),
        node("Identity", ["scores"], ["out"]),
    ],
}

# From `scores` to `large`: how many numbers there are depends on what they are.
SIZED_BY_THE_IMAGE = {
    "as many as are not zero": [node("Relu", ["scores"], ["some"]), node("NonZero", ["some"], ["found"])],
    "as many as differ": [node("Unique", ["scores"], ["found"])],
    "as many as are chosen": [
        node("Greater", ["scores", "none"], ["are large"]),
        node("Reshape", ["are large", "flat"], ["flags"]),
        node("Compress", ["scores", "flags"], ["found"]),
    ],
    "the first so many": [
        *(MEAN, node("Cast", ["mean"], ["whole"], to=TensorProto.INT64)),
        *(node("Reshape", ["whole", "flat"], ["k"]), node("TopK", ["scores", "k"], ["found", "places"])),
    ],
    "a range": [
        *(MEAN, node("Cast", ["mean"], ["whole"], to=TensorProto.INT64)),
        node("Range", ["one", "whole", "one"], ["found"]),
    ],
    "resized": [
        node("Unsqueeze", ["scores", "flat zero"], ["row"]),
        *(node("ReduceMax", ["scores", "flat zero"], ["largest"], keepdims=0),),
        *(node("Gather", ["largest", "three indices"], ["scales"]),),
        node("Resize", ["row", "", "scales"], ["found"]),
    ],
    "through others": [
        node("NonZero", ["scores"], ["places"]),
        node("Transpose", ["places"], ["rows"]),
        node("GatherND", ["scores", "rows"], ["numbers"]),
        node("Mul", ["numbers", "half"], ["found"]),
    ],
    "a sum of as many ones": [
        *(node("NonZero", ["scores"], ["places"]), node("Shape", ["places"], ["sides"])),
        *(node("ConstantOfShape", ["sides"], ["zeros"]), node("Cos", ["zeros"], ["ones"])),
        node("ReduceSum", ["ones"], ["found"]),
    ],
}


def saved(nodes: list[onnx.NodeProto], folder: Path) -> Path:
    model_proto = files.small_graph(more_nodes=nodes)
    del model_proto.graph.output[:]
    model_proto.graph.output.append(value("out", shape=["N", 4]))
    constants = {
        "none": np.float32(0),
        "half": np.float32(0.5),
        "yes": np.array(True),
        "one": np.array(1),
        "three": np.array(3),
    }
    model_proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    onnx.checker.check_model(model_proto)
    (folder / "labels.txt").write_text("\n".join(files.LABELS) + "\n")
    return files.save(model_proto, folder)


@pytest.mark.parametrize("case", REFUSED)
def test_what_decides_by_the_image_is_refused_by_name_before_any_work(case, tmp_path, monkeypatch):
    path = saved(REFUSED[case], tmp_path)
    monkeypatch.setattr(onnx_file, "import_onnx", lambda *_, **__: pytest.fail("the file was run"))
    with pytest.raises(SourceError) as raised:
        load_source(files.config(path))
    text = str(raised.value)
    assert text.startswith(f"{case} decides by ")
    assert "the images beside it" in text
    assert "\n" not in text


@pytest.mark.parametrize("case", SIZED_BY_THE_IMAGE)
def test_what_decides_by_how_much_was_found_in_the_image_is_refused(case):
    nodes = [
        *SIZED_BY_THE_IMAGE[case],
        node("Size", ["found"], ["count"]),
        node("Greater", ["count", "one"], ["many"]),
        node("If", ["many"], ["out"], name="pick", **branches()),
    ]
    if case == "a sum of as many ones":
        nodes[-3] = node("Cast", ["found"], ["count"], to=TensorProto.INT64)
    graph = helper.make_graph(nodes, "graph", [value("scores")], [value("out")])
    with pytest.raises(SourceError, match="If pick decides by many, which is computed from the image"):
        check_control_flow(graph, "scores", "out")


def test_a_loop_whose_turns_change_a_size_by_the_image_is_refused():
    """What it carries has known sides before the first turn, and others before the second."""
    inner = helper.make_graph(
        [
            *(node("Size", ["carried"], ["count"]), node("Greater", ["count", "one"], ["many"])),
            node("If", ["many"], ["unused"], name="inner", **branches()),
            *(node("NonZero", ["carried"], ["found"]), node("Identity", ["again"], ["goes on"])),
        ],
        "body",
        [value("turn", TensorProto.INT64, []), value("again", TensorProto.BOOL, []), value("carried")],
        [value("goes on", TensorProto.BOOL, []), value("found")],
    )
    loop = node("Loop", ["three", "", "scores"], ["out"], name="halve", body=inner)
    graph = helper.make_graph([loop], "graph", [value("scores")], [value("out")])
    with pytest.raises(SourceError, match="If inner decides by many, which is computed from the image"):
        check_control_flow(graph, "scores", "out")


def test_sides_that_follow_from_sides_are_no_numbers_of_the_image():
    """A reshape to as many rows as there are images, as exporters write a flatten, and what is read of it."""
    nodes = [
        *(node("Shape", ["scores"], ["sides"]), node("Gather", ["sides", "flat zero"], ["rows"])),
        *(
            node("Concat", ["rows", "rest"], ["target"], axis=0),
            node("Reshape", ["scores", "target"], ["flat"]),
        ),
        *(node("TopK", ["flat", "k"], ["best", "places"]), node("Size", ["places"], ["count"])),
        node("Greater", ["count", "one"], ["many"]),
        node("If", ["many"], ["out"], name="pick", **branches()),
    ]
    check_control_flow(helper.make_graph(nodes, "graph", [value("scores")], [value("out")]), "scores", "out")


def test_an_operation_of_another_domain_may_return_any_size():
    nodes = [
        node("FusedConv", ["scores"], ["found"], domain="com.microsoft"),
        *(node("Size", ["found"], ["count"]), node("Greater", ["count", "one"], ["many"])),
        node("If", ["many"], ["out"], name="pick", **branches()),
    ]
    graph = helper.make_graph(nodes, "graph", [value("scores")], [value("out")])
    with pytest.raises(SourceError, match="If pick decides by many"):
        check_control_flow(graph, "scores", "out")


# Their whole numbers and truth values choose among numbers, and not how many come out.
CHOOSING = {
    *("And", "Or", "Xor", "Not", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Equal"),
    *("Attention", "ConvInteger", "CumProd", "CumSum", "DequantizeLinear", "Dropout", "GRU", "LSTM", "RNN"),
    *("Gather", "GatherElements", "GatherND", "MatMulInteger", "NegativeLogLikelihoodLoss", "QLinearConv"),
    *("QLinearMatMul", "QuantizeLinear", "RegexFullMatch", "ReverseSequence", "RoiAlign", "RotaryEmbedding"),
    *("Scatter", "ScatterElements", "ScatterND", "SoftmaxCrossEntropyLoss", "StringConcat", "TensorScatter"),
    *("TfIdfVectorizer", "Trilu", "Where", "Scan"),
    *("If", "Loop"),  # checked by what is in them
}


def test_every_operation_of_onnx_that_reads_whole_numbers_is_known():
    known = CHOOSING | set(DECIDING_INPUTS)
    unknown = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if not schema.domain
        and schema.name not in known
        and any(not any("float" in name for name in given.types) for given in schema.inputs)
    }
    assert not unknown, "decide whether their sides depend on those numbers"


@pytest.mark.parametrize("case", PUBLISHED)
def test_what_treats_all_images_alike_is_published(case, tmp_path):
    path = saved(PUBLISHED[case], tmp_path)
    assert export_model(files.config(path)) == 0
    published = tmp_path / "models/adopted/1"
    logits = files.adopted_logits(published, files.IMAGES)
    assert np.abs(logits - files.given_logits(path, files.IMAGES, "out")).max() < 5e-5
